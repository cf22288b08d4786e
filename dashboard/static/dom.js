// Making and patching elements. Data reaches the page only as text nodes and attributes: nothing here parses HTML.

const svgSpace = 'http://www.w3.org/2000/svg';

// el makes an element: el('p', {class: 'x', onclick: f}, 'text', child). Children that are null or false are left out.
export function el(name, attributes, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith('on')) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? '' : value);
  }
  node.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false));
  return node;
}

export function svg(name, attributes, ...children) {
  const node = document.createElementNS(svgSpace, name);
  for (const [key, value] of Object.entries(attributes ?? {})) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

const paths = {
  ok: 'M3 8.5l3.2 3.2L13 4.8',
  warning: 'M8 2.2L14.5 13.5h-13zM8 6.5v3.2M8 11.6v.1',
  danger: 'M8 1.8a6.2 6.2 0 1 0 .01 0zM5.7 5.7l4.6 4.6M10.3 5.7l-4.6 4.6',
  info: 'M8 1.8a6.2 6.2 0 1 0 .01 0zM8 7.3v4M8 4.7v.1',
  wait: 'M8 1.8a6.2 6.2 0 1 0 .01 0zM8 4.5V8l2.4 1.6',
  none: 'M8 1.8a6.2 6.2 0 1 0 .01 0z',
  pause: 'M5.5 3.5v9M10.5 3.5v9',
  live: 'M2 8h2.5l1.8-4.5 3 9L11.3 8H14',
  copy: 'M5.5 5.5h7v7h-7zM3.5 10.5v-7h7',
};

// icon is a small drawing beside a text that says the same, so it is hidden from screen readers.
export function icon(name) {
  return svg('svg', { viewBox: '0 0 16 16', class: `icon icon-${name}`, 'aria-hidden': 'true' }, svg('path', { d: paths[name] ?? paths.info }));
}

// setText changes a node's text only if it differs, so that selections and live regions are left alone.
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function setAttr(node, name, value) {
  if (value === null || value === undefined || value === false) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
  } else {
    const text = value === true ? '' : String(value);
    if (node.getAttribute(name) !== text) node.setAttribute(name, text);
  }
}

export function show(node, visible) {
  if (node.hidden === Boolean(visible)) node.hidden = !visible;
}

export const byId = (id) => document.getElementById(id);

// name isolates a name that others chose: right-to-left letters in it do not rearrange what stands beside it.
export const name = (text, attributes) => el('bdi', { class: 'name', ...attributes }, printable(text));

// printable makes control characters visible: a name or a message may hold escape sequences, or mean to reorder the text around it.
export function printable(text) {
  return String(text).replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g, (c) => {
    const code = c.charCodeAt(0);
    return code < 0x20 ? String.fromCharCode(0x2400 + code) : '\ufffd';
  });
}

// list keeps the children of a container equal to items: nodes are reused by key, made by make(item) and brought up to date by
// update(node, item). Nodes that are in place already are not touched.
export function list(container, items, keyOf, make, update) {
  const known = (container.nodesByKey ??= new Map());
  const wanted = new Set();
  let place = container.firstElementChild;
  for (const item of items) {
    let key = String(keyOf(item));
    while (wanted.has(key)) key += '\u0000'; // equal keys are different items
    wanted.add(key);
    let node = known.get(key);
    if (!node) known.set(key, node = make(item));
    update?.(node, item);
    if (node === place) place = place.nextElementSibling;
    else container.insertBefore(node, place);
  }
  for (const [key, node] of known) {
    if (!wanted.has(key)) {
      node.remove();
      known.delete(key);
    }
  }
}

// copyButton copies what text() returns, and says so on itself.
export function copyButton(text, label = 'Copy') {
  const caption = el('span', {}, label);
  const button = el('button', { type: 'button', class: 'button small copy' }, icon('copy'), caption);
  let timer = 0;
  button.addEventListener('click', async () => {
    const done = await copyText(text());
    setText(caption, done ? 'Copied' : 'Select and copy it yourself');
    announce(done ? 'Copied.' : 'It could not be copied.');
    clearTimeout(timer);
    timer = setTimeout(() => setText(caption, label), 2000);
  });
  return button;
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text); // only over https, and on localhost
    return true;
  } catch {
    const area = el('textarea', { readonly: true, 'aria-hidden': 'true', class: 'offscreen' });
    area.value = text;
    (document.querySelector('dialog[open]') ?? document.body).append(area); // what is behind a dialog cannot be selected
    area.select();
    const done = document.execCommand('copy');
    area.remove();
    return done;
  }
}

// announce has a screen reader say something once, politely.
let announced = 0;
export function announce(text) {
  const region = byId('announcer');
  region.textContent = '';
  clearTimeout(announced);
  announced = setTimeout(() => { region.textContent = text; }, 50);
}
