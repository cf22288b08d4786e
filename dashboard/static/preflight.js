// The findings of preflight, the gravest first, with remedies to copy.
import { byId, copyButton, el, icon, list, printable, setText, show } from './dom.js';
import { moment, plural } from './format.js';
import { tally } from './guide.js';

const order = ['blocker', 'warning', 'info', 'ok'];
const words = { blocker: 'Blocker', warning: 'Warning', info: 'Note', ok: 'Fine' };
const icons = { blocker: 'danger', warning: 'warning', info: 'info', ok: 'ok' };

export function drawPreflight({ loading, findings, error, checkedAt, stale }) {
  const button = byId('recheck');
  button.disabled = loading;
  setText(button, loading ? 'Checking…' : 'Check again');
  show(byId('preflight-error'), error);
  setText(byId('preflight-error'), error ? `The checks could not be made: ${printable(error)}` : '');
  const n = tally(findings ?? []);
  const summary = !findings ? (loading ? 'Both databases are being checked. Nothing is changed.' : '')
    : [n.blocker && plural(n.blocker, 'blocker'), n.warning && plural(n.warning, 'warning'), n.info && plural(n.info, 'note'), `${n.ok} fine`].filter(Boolean).join(', ');
  setText(byId('preflight-summary'), `${summary}${checkedAt ? ` · checked at ${moment(checkedAt)}` : ''}`);
  show(byId('preflight-stale'), stale && findings);
  setText(byId('tab-checks-count'), n.blocker + n.warning ? String(n.blocker + n.warning) : '');
  const sorted = [...(findings ?? [])].sort((a, b) => order.indexOf(a.severity) - order.indexOf(b.severity));
  // What is fine is folded away.
  draw(byId('findings'), sorted.filter((f) => f.severity !== 'ok'));
  draw(byId('findings-ok'), sorted.filter((f) => f.severity === 'ok'));
  show(byId('findings-ok-box'), n.ok);
  setText(byId('findings-ok-title'), `${plural(n.ok, 'check')} that found nothing to do`);
}

function draw(box, findings) {
  list(box, findings, (f) => `${f.severity}\n${f.check}\n${f.message}\n${f.remedy ?? ''}\n${(f.objects ?? []).join()}`, make);
}

function make(f) {
  const many = f.objects ?? [];
  return el('li', { class: `finding finding-${f.severity}` }, icon(icons[f.severity]), el('div', { class: 'finding-body' },
    el('div', { class: 'finding-head' }, el('strong', {}, words[f.severity] ?? f.severity), el('span', { class: 'check-name' }, printable(f.check).replaceAll('_', ' '))),
    el('p', {}, el('bdi', {}, printable(f.message))),
    many.length ? el('details', {}, el('summary', {}, plural(many.length, 'object')), el('ul', { class: 'names' }, many.map((o) => el('li', {}, el('bdi', {}, printable(o)))))) : null,
    f.remedy ? el('div', { class: 'remedy' }, el('div', {}, el('span', { class: 'remedy-label' }, 'What to do'), el('bdi', { class: 'remedy-text' }, printable(f.remedy))), copyButton(() => f.remedy)) : null));
}
