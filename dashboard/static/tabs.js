// The tabs under what happens now: one is shown, arrow keys walk between them, and the address keeps which.
import { byId, setAttr, show } from './dom.js';

const names = ['overview', 'checks', 'tables', 'activity', 'logs'];
let current = 'overview';
let changed = () => {};

export const shownTab = () => current;

export function showTab(name) {
  current = names.includes(name) ? name : 'overview';
  for (const n of names) {
    const tab = byId(`tab-${n}`);
    setAttr(tab, 'aria-selected', n === current ? 'true' : 'false');
    setAttr(tab, 'tabindex', n === current ? '0' : '-1'); // one stop for the Tab key
    show(byId(`panel-${n}`), n === current);
  }
  changed();
}

export function startTabs(onChange) {
  changed = onChange;
  const go = (name) => {
    showTab(name);
    history.replaceState(null, '', `#${name}`);
  };
  names.forEach((name, i) => {
    const tab = byId(`tab-${name}`);
    tab.addEventListener('click', () => go(name));
    tab.addEventListener('keydown', (event) => {
      const to = { ArrowRight: i + 1, ArrowLeft: i - 1 + names.length, Home: 0, End: names.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      go(names[to % names.length]);
      byId(`tab-${current}`).focus();
    });
  });
  showTab(current);
}
