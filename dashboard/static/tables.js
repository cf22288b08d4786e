// The grid of tables. Only the rows in sight exist, and each cell is patched only if its text changes: a thousand tables cost as much as ten.
import { byId, el, icon, name, printable, setAttr, setText, show } from './dom.js';
import { byteRate, bytes, count, duration, none, percent, plural, shortCount } from './format.js';

const states = ['set_aside', 'copying', 'indexing', 'pending', 'indexed', 'live']; // in the order of interest
const stateWords = { set_aside: 'Set aside', pending: 'Waiting', copying: 'Copying', indexing: 'Indexing', indexed: 'Copied', live: 'Live' };
const stateIcons = { set_aside: 'warning', pending: 'none', copying: 'copy', indexing: 'wait', indexed: 'ok', live: 'live' };
const checkedWords = { same: 'Same', differs: 'Differs', resent: 'Sent again', unknown: none };
const narrow = matchMedia('(max-width: 720px)');
const spare = 6; // rows made beyond what is in sight

const columns = [
  { key: 'name', label: 'Table', value: (t) => `${t.schema}.${t.name}`.toLowerCase() },
  { key: 'state', label: 'State', value: (t) => states.indexOf(t.state) },
  { key: 'rows', label: 'Rows', value: (t) => t.rows_copied + (t.rows_in_flight ?? 0), down: true },
  { key: 'bytes', label: 'Size', value: (t) => t.bytes_total, down: true },
  { key: 'done', label: 'Copied', value: (t) => done(t), down: true },
  { key: 'rate', label: 'Speed', value: (t) => t.bytes_per_second ?? -1, down: true },
  { key: 'left', label: 'Time left', value: (t) => t.eta_seconds ?? -1, down: true },
  { key: 'format', label: 'Format', value: (t) => t.format },
  { key: 'checked', label: 'Verified', value: (t) => t.checked },
];

function done(t) {
  if (['indexing', 'indexed', 'live'].includes(t.state)) return 100;
  return t.bytes_total > 0 ? Math.min(100, ((t.bytes_copied + (t.bytes_in_flight ?? 0)) / t.bytes_total) * 100) : 0;
}

export class Tables {
  constructor() {
    this.all = this.shown = [];
    this.sort = { key: 'bytes', down: true };
    this.rows = [];
    this.scroller = byId('tables-scroll');
    this.body = byId('tables-body');
    this.search = byId('tables-search');
    this.state = byId('tables-state');
    this.order = byId('tables-sort');
    this.heads = columns.map((c) => {
      const button = el('button', { type: 'button', onclick: () => this.sortBy(c.key) }, el('span', {}, c.label), el('span', { class: 'arrow', 'aria-hidden': 'true' }));
      return el('div', { role: 'columnheader', class: `cell c-${c.key}` }, button);
    });
    byId('tables-head').append(...this.heads);
    this.order.append(...columns.map((c) => el('option', { value: c.key }, c.label)));
    this.state.append(...states.map((s) => el('option', { value: s }, stateWords[s])));
    this.search.addEventListener('input', () => this.arrange(true));
    this.state.addEventListener('change', () => this.arrange(true));
    this.order.addEventListener('change', () => this.sortBy(this.order.value));
    this.scroller.addEventListener('scroll', () => this.schedule(), { passive: true });
    new ResizeObserver(() => this.schedule()).observe(this.scroller);
  }

  sortBy(key) {
    const column = columns.find((c) => c.key === key);
    this.sort = this.sort.key === key ? { key, down: !this.sort.down } : { key, down: Boolean(column.down) };
    this.arrange(true);
  }

  set(status) {
    const v = status.verification;
    const differ = new Set((v?.differences ?? []).map((text) => text.split(' has ')[0]));
    this.all = status.tables;
    for (const t of this.all) t.checked = !v ? 'unknown' : !differ.has(`${t.schema}.${t.name}`) ? 'same' : v.resent ? 'resent' : 'differs';
    this.arrange(false);
  }

  arrange(toTop) {
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const column = columns.find((c) => c.key === this.sort.key);
    const direction = this.sort.down ? -1 : 1;
    const order = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
    const nameOf = columns[0].value;
    this.shown = this.all.filter((t) => (!this.state.value || t.state === this.state.value) && words.every((w) => nameOf(t).includes(w)));
    this.shown.sort((a, b) => direction * order(column.value(a), column.value(b)) || order(nameOf(a), nameOf(b)));
    this.heads.forEach((head, i) => {
      const sorted = columns[i].key === this.sort.key;
      setAttr(head, 'aria-sort', sorted ? (this.sort.down ? 'descending' : 'ascending') : null);
    });
    this.order.value = this.sort.key;
    setText(byId('tables-count'), this.shown.length === this.all.length ? plural(this.all.length, 'table') : `${count(this.shown.length)} of ${plural(this.all.length, 'table')}`);
    show(byId('tables-empty'), !this.shown.length);
    setText(byId('tables-empty'), this.all.length ? 'No table matches.' : 'The tables are listed as soon as the schema is cloned.');
    show(byId('tables-grid'), this.shown.length);
    setAttr(byId('tables-grid'), 'aria-rowcount', this.shown.length + 1);
    if (toTop) this.scroller.scrollTop = 0;
    this.schedule();
  }

  schedule() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
    });
  }

  draw() {
    if (!this.scroller.offsetParent) return; // not in sight
    const height = narrow.matches ? 88 : 42;
    this.body.style.height = `${this.shown.length * height}px`;
    const first = Math.max(0, Math.floor(this.scroller.scrollTop / height) - spare);
    const n = Math.min(this.shown.length - first, Math.ceil(this.scroller.clientHeight / height) + 2 * spare);
    while (this.rows.length < n) {
      const row = newRow();
      this.rows.push(row);
      this.body.append(row.node);
    }
    this.rows.forEach((row, i) => {
      show(row.node, i < n);
      if (i >= n) return;
      row.node.style.transform = `translateY(${(first + i) * height}px)`;
      setAttr(row.node, 'aria-rowindex', first + i + 2);
      fill(row, this.shown[first + i]);
    });
  }
}

function newRow() {
  const cells = Object.fromEntries(columns.map((c) => [c.key, el('div', { role: 'cell', class: `cell c-${c.key}`, 'data-label': c.label })]));
  const schema = name('', { class: 'schema' });
  const table = name('', { class: 'table-name' });
  cells.name.append(schema, table);
  const word = el('span');
  const bar = el('span', { class: 'bar' }, el('i'));
  const part = el('span');
  cells.done.append(bar, part);
  return { node: el('div', { role: 'row', class: 'row' }, Object.values(cells)), cells, schema, table, word, bar: bar.firstChild, part };
}

function fill(row, t) {
  const { cells } = row;
  setText(row.schema, t.schema === 'public' ? '' : `${printable(t.schema)}.`);
  setText(row.table, printable(t.name));
  setAttr(cells.name, 'title', `${printable(t.schema)}.${printable(t.name)}`);
  if (row.state !== t.state) {
    row.state = t.state;
    setAttr(row.node, 'data-state', t.state);
    setText(row.word, stateWords[t.state] ?? t.state);
    cells.state.replaceChildren(icon(stateIcons[t.state]), row.word);
  }
  setText(cells.rows, (narrow.matches ? shortCount : count)(t.rows_copied + (t.rows_in_flight ?? 0)));
  setText(cells.bytes, bytes(t.bytes_total));
  const p = done(t);
  row.bar.style.transform = `scaleX(${p / 100})`;
  setText(row.part, percent(p));
  setText(cells.rate, t.bytes_per_second ? byteRate(t.bytes_per_second) : none);
  setAttr(cells.rate, 'data-none', !t.bytes_per_second);
  setText(cells.left, t.state === 'copying' ? duration(t.eta_seconds) : none);
  setText(cells.format, t.format || none);
  setText(cells.checked, checkedWords[t.checked]);
  setAttr(cells.checked, 'data-checked', t.checked);
  setAttr(cells.checked, 'data-none', t.checked === 'unknown');
}
