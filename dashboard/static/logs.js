// Logs and activity: two lists that grow, are filtered, and follow their end unless one has scrolled away from it.
import { byId, el, icon, printable, setAttr, setText, show } from './dom.js';
import { count, moment, time } from './format.js';

const kept = 2000; // entries in memory
const drawn = 500; // of them on the page
const rank = { debug: 0, info: 1, warn: 2, warning: 2, error: 3 };
const words = { debug: 'Debug', info: 'Info', warn: 'Warning', warning: 'Warning', error: 'Error' };
const levelOf = (entry) => String(entry.level ?? 'info').toLowerCase();

// Feed is what both have in common. make(entry) returns an element; text(entry) is what is searched.
class Feed {
  constructor({ prefix, make, text, newestFirst }) {
    Object.assign(this, { make, text, newestFirst });
    this.entries = [];
    this.fresh = [];
    this.box = byId(`${prefix}-list`);
    this.search = byId(`${prefix}-search`);
    this.level = byId(`${prefix}-level`);
    this.count = byId(`${prefix}-count`);
    this.empty = byId(`${prefix}-empty`);
    this.follow = byId(`${prefix}-follow`);
    this.following = true;
    this.top = 0;
    this.search.addEventListener('input', () => this.redraw());
    this.level.addEventListener('change', () => this.redraw());
    this.follow?.addEventListener('click', () => this.setFollow(!this.following));
    if (this.follow) this.box.addEventListener('scroll', () => this.scrolled(), { passive: true });
  }

  // scrolled: going up stops following, and coming back to the end resumes it.
  scrolled() {
    const top = this.box.scrollTop;
    if (top < this.top - 2) this.setFollow(false);
    else if (this.atEnd()) this.setFollow(true);
    this.top = top;
  }

  atEnd() { return this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < 40; }

  setFollow(on) {
    this.following = on;
    setAttr(this.follow, 'aria-pressed', String(on));
    if (on) this.toEnd();
  }

  toEnd() {
    this.box.scrollTop = this.box.scrollHeight;
    this.top = this.box.scrollTop;
  }

  // shown is called when the list comes into sight: before, there was nothing to scroll.
  shown() { if (this.follow && this.following) this.toEnd(); }

  add(entries) {
    this.entries.push(...entries);
    if (this.entries.length > kept) this.entries.splice(0, this.entries.length - kept);
    this.fresh.push(...entries);
  }

  wanted(entry) {
    const least = this.level.value;
    if (least && (rank[levelOf(entry)] ?? 1) < rank[least]) return false;
    const sought = this.search.value.trim().toLowerCase();
    return !sought || this.text(entry).toLowerCase().includes(sought);
  }

  // draw appends what is new; it is called once a frame at most.
  draw() {
    if (!this.fresh.length) return;
    const fresh = this.fresh.filter((e) => this.wanted(e)).slice(-drawn);
    this.fresh = [];
    this.insert(fresh);
  }

  redraw() {
    this.fresh = [];
    this.box.replaceChildren();
    this.insert(this.entries.filter((e) => this.wanted(e)).slice(-drawn));
  }

  insert(entries) {
    const nodes = entries.map(this.make);
    if (this.newestFirst) this.box.prepend(...nodes.reverse());
    else this.box.append(...nodes);
    for (let extra = this.box.childElementCount - drawn; extra > 0; extra--) (this.newestFirst ? this.box.lastChild : this.box.firstChild).remove();
    show(this.empty, !this.box.childElementCount);
    setText(this.empty, this.entries.length ? 'Nothing matches.' : 'Nothing yet.');
    setText(this.count, this.search.value || this.level.value ? `${count(this.box.childElementCount)} match` : `${count(this.entries.length)} entries`);
    if (this.follow && this.following) this.toEnd();
  }
}

const attributes = (entry) => Object.entries(entry.attrs ?? {}).map(([k, v]) => `${k}=${v}`).join(' ');

export const logs = () => new Feed({
  prefix: 'logs',
  text: (e) => `${e.message} ${attributes(e)}`,
  make: (e) => {
    const level = levelOf(e);
    return el('li', { class: `log log-${level}` }, el('time', { datetime: e.at, title: e.at }, time(e.at)), el('span', { class: 'level' }, level.toUpperCase()),
      el('span', { class: 'text' }, el('bdi', {}, printable(e.message)), ' ', el('bdi', { class: 'attrs' }, printable(attributes(e)))));
  },
});

const kinds = {
  phase: 'Phase', table: 'Table', object: 'Object', warning: 'Warning', failure: 'Failure', command: 'Command', schema: 'Schema change', verify: 'Verification', waiting: 'Waiting', switched: 'Switch',
};

export const activity = () => new Feed({
  prefix: 'activity', newestFirst: true,
  text: (e) => `${kinds[e.kind] ?? e.kind} ${e.message} ${e.table ?? ''}`,
  make: (e) => {
    const level = levelOf(e);
    const drawing = level === 'error' ? 'danger' : level === 'warning' || e.kind === 'waiting' ? 'warning' : e.kind === 'schema' ? 'copy' : e.kind === 'phase' || e.kind === 'switched' ? 'live' : 'info';
    return el('li', { class: `event event-${level} kind-${e.kind}` }, icon(drawing),
      el('div', { class: 'event-body' }, el('div', { class: 'event-head' }, el('span', { class: 'kind' }, kinds[e.kind] ?? e.kind),
        rank[level] > 1 && words[level] !== kinds[e.kind] ? el('span', { class: 'level' }, words[level]) : null,
        el('time', { datetime: e.at, title: e.at }, moment(e.at))),
      el('bdi', { class: 'text' }, printable(e.message), e.table && !e.message.includes(e.table) ? ` (${printable(e.table)})` : '')));
  },
});
