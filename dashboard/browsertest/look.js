// What is wrong with how a page looks: an expression whose value is a list of sentences, empty if all is well.
(() => {
  const wrong = [];
  const say = (text) => { if (wrong.length < 30) wrong.push(text); };
  const describe = (e) => `${e.tagName.toLowerCase()}${e.id ? `#${e.id}` : ''}${e.getAttribute?.('class') ? `.${e.getAttribute('class').replaceAll(' ', '.')}` : ''} “${(e.innerText ?? e.textContent ?? '').trim().slice(0, 50)}”`;
  const dialog = document.querySelector('dialog[open]');
  const ground = dialog ?? document.body;
  const seen = (e) => e.checkVisibility({ opacityProperty: true, visibilityProperty: true, contentVisibilityAuto: true });

  // One h1, and landmarks.
  if ([...document.querySelectorAll('h1')].filter(seen).length !== 1) say('there is not exactly one h1');
  for (const landmark of ['header', 'main', 'footer', 'nav']) if (document.querySelectorAll(landmark).length !== 1) say(`there is not exactly one ${landmark}`);
  if (!document.documentElement.lang) say('the language is not said');
  const ids = [...document.querySelectorAll('[id]')].map((e) => e.id);
  for (const id of new Set(ids)) if (ids.filter((i) => i === id).length > 1) say(`the id ${id} is there twice`);
  for (const e of document.querySelectorAll('[aria-labelledby],[aria-describedby],[aria-controls],label[for]')) {
    for (const a of ['aria-labelledby', 'aria-describedby', 'aria-controls', 'for']) {
      for (const id of (e.getAttribute(a) ?? '').split(' ').filter(Boolean)) if (!document.getElementById(id)) say(`${describe(e)}: ${a} refers to ${id}, which is not there`);
    }
  }

  // Nothing is wider than the window, or than the box it is in.
  const width = document.documentElement.clientWidth;
  if (document.scrollingElement.scrollWidth > width) {
    const wide = [...document.querySelectorAll('body *')].filter((e) => seen(e) && e.getBoundingClientRect().right > width + 1);
    say(`the page is ${document.scrollingElement.scrollWidth} px wide in a window of ${width}: ${wide.slice(0, 4).map(describe).join(', ')}`);
  }
  for (const e of ground.querySelectorAll('*')) {
    if (e.namespaceURI !== 'http://www.w3.org/1999/xhtml' || !seen(e) || e.clientWidth === 0 || e.closest('.offscreen, option')) continue;
    const style = getComputedStyle(e);
    if (style.overflowX === 'visible' && style.display !== 'inline' && e.scrollWidth > e.clientWidth + 1) say(`${describe(e)} overflows its box: ${e.scrollWidth} px in ${e.clientWidth}`);
    if (e.matches('button, .button, .chip, h1, h2, dt, dd') && e.scrollHeight > e.clientHeight + 3 && style.overflowY !== 'visible') say(`${describe(e)} is cut off`);
  }
  // Fingers need room, and a button's text stands in one line.
  if (matchMedia('(pointer: coarse)').matches || width < 500) {
    for (const e of ground.querySelectorAll('button, .button, select, input:not([type=checkbox])')) {
      const box = e.getBoundingClientRect();
      if (seen(e) && box.width > 1 && (box.height < 24 || box.width < 24)) say(`${describe(e)} is too small for a finger: ${Math.round(box.width)} × ${Math.round(box.height)}`);
    }
  }

  // Contrast.
  const rgba = (text) => {
    const m = text.match(/^rgba?\(([\d.]+), ([\d.]+), ([\d.]+)(?:, ([\d.]+))?\)$/);
    if (!m) throw new Error(`not a colour that is understood: ${text}`);
    return [Number(m[1]), Number(m[2]), Number(m[3]), m[4] === undefined ? 1 : Number(m[4])];
  };
  const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
  const luminance = (c) => {
    const [r, g, b] = c.slice(0, 3).map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => {
    const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };
  const path = (e) => (e ? [...path(e === dialog ? null : e.parentElement), e] : []);
  // As it is painted: the backgrounds of all it stands in, and their opacity.
  const painted = (e, colour) => {
    let ground = document.documentElement.dataset.theme === 'dark' ? [0, 0, 0, 1] : [255, 255, 255, 1];
    let opacity = 1;
    for (const a of path(e)) {
      const style = getComputedStyle(a);
      opacity *= Number(style.opacity);
      const background = rgba(style.backgroundColor);
      ground = over([...background.slice(0, 3), background[3] * opacity], ground);
    }
    const text = rgba(colour);
    return contrast(over([...text.slice(0, 3), text[3] * opacity], ground), ground);
  };
  const weak = new Set();
  const check = (e, colour, what) => {
    const style = getComputedStyle(e);
    const size = parseFloat(style.fontSize);
    const least = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700) ? 3 : 4.5;
    const is = painted(e, colour);
    if (is < least - 0.005) weak.add(`${describe(e)}${what} has a contrast of ${is.toFixed(2)}, not ${least}`);
  };
  const texts = document.createTreeWalker(ground, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const e = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !seen(e) || e.closest('.offscreen, .skip, option, script, style, :disabled')) continue;
    check(e, e.namespaceURI === 'http://www.w3.org/2000/svg' ? getComputedStyle(e).fill : getComputedStyle(e).color, '');
  }
  for (const e of ground.querySelectorAll('input:not([type=checkbox]), select')) {
    if (!seen(e) || e.disabled) continue;
    check(e, getComputedStyle(e).color, '');
    if (e.placeholder) check(e, getComputedStyle(e, '::placeholder').color, ' (its placeholder)');
  }
  for (const text of weak) say(text);
  return wrong;
})()
