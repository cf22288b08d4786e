// Dark or light. This is the one script that blocks rendering, so that the page does not flash in the wrong colours.
// data-theme is always "dark" or "light"; what was chosen ("auto", "dark", "light") is kept in localStorage.
(() => {
  const key = 'migrator.theme';
  const prefersDark = matchMedia('(prefers-color-scheme: dark)');
  const stored = () => {
    try { return localStorage.getItem(key) ?? 'auto'; } catch { return 'auto'; } // storage may be forbidden
  };
  let choice = stored();

  const apply = () => {
    const dark = choice === 'dark' || (choice !== 'light' && prefersDark.matches);
    document.documentElement.dataset.theme = dark ? 'dark' : 'light';
  };
  prefersDark.addEventListener('change', apply);
  apply();

  const label = (button) => {
    const name = { auto: 'Auto', dark: 'Dark', light: 'Light' }[choice] ?? 'Auto';
    button.querySelector('.theme-name').textContent = name;
    button.setAttribute('aria-label', `Theme: ${name}`);
  };
  document.addEventListener('DOMContentLoaded', () => {
    const button = document.getElementById('theme');
    label(button);
    button.addEventListener('click', () => {
      choice = { auto: 'dark', dark: 'light', light: 'auto' }[choice] ?? 'auto';
      try { localStorage.setItem(key, choice); } catch { /* it lasts until the page is closed */ }
      apply();
      label(button);
    });
  });
})();
