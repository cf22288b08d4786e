// The page: takes in what the server tells, and draws it, once a frame at most, however often that is.
import { actions, permission } from './actions.js';
import { appMoved, drawAfter, startAfter } from './after.js';
import { command, get, Live } from './api.js';
import { ask, endpoint, showError } from './dialogs.js';
import { announce, byId, el, icon, list, printable, setAttr, setText, show } from './dom.js';
import { count, duration, moment, percent, time } from './format.js';
import { figures, guide, heed, stepNumber, steps, takesWrites } from './guide.js';
import { activity, logs } from './logs.js';
import { drawOverview, drawVerifyOutput, record, startOverview } from './overview.js';
import { drawPreflight } from './preflight.js';
import { startTabs, shownTab, showTab } from './tabs.js';
import { Tables } from './tables.js';

let status = null;
let guided = null; // what the guide says of it
let asked = null; // the command that this page has asked for and not heard of
let dismissed = null; // the result that was put away
let frame = 0;
let skew = 0; // how far the server's clock is before this one's, in ms
const serverNow = () => Date.now() + skew;
const preflight = { loading: false, findings: null, error: null, checkedAt: null, stale: false };
const tables = new Tables(), logFeed = logs(), activityFeed = activity();
const schemaChanges = [];

// schedule draws before the next frame. A page in the background gets no frames, so nothing is drawn there.
function schedule() {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    draw();
  });
}

function draw() {
  logFeed.draw();
  activityFeed.draw();
  if (!status) return;
  guided = guide(status, { preflight, appMoved: appMoved(status) });
  drawTop();
  drawNow();
  drawActions();
  drawCommand();
  drawAfter(status);
  if (shownTab() === 'overview') drawOverview(status);
  if (shownTab() === 'tables') tables.set(status);
  preflight.stale = status.phase !== 'waiting' && Date.parse(status.started_at) > Date.parse(preflight.checkedAt);
  drawPreflight(preflight);
  setText(byId('tab-tables-count'), status.tables.length ? count(status.tables.length) : '');
  list(byId('schema-changes-list'), schemaChanges, (e) => e.id, (e) => el('li', {}, el('time', { datetime: e.at, class: 'muted' }, moment(e.at)), ' ', el('bdi', {}, printable(e.message))));
  show(byId('schema-changes'), schemaChanges.length);
  document.body.dataset.ready = 'true';
}

function drawTop() {
  const writes = takesWrites(status);
  for (const side of ['source', 'target']) {
    const db = status.databases?.[side];
    const card = byId(`${side}-card`);
    const key = JSON.stringify([db?.host, db?.port, db?.database, db?.version, writes]);
    if (card.dataset.key === key) continue;
    card.dataset.key = key;
    card.replaceChildren(endpoint(side, db), el('div', { class: 'db-facts' }, db?.version ? el('span', {}, `Postgres ${printable(db.version).split(' ')[0]}`) : null,
      writes === side && db?.database ? el('span', { class: 'chip good' }, icon('ok'), 'Takes writes') : null));
  }
  const at = stepNumber(status);
  list(byId('steps'), steps, (s) => s, (s) => el('li', {}, el('span', { class: 'step-mark' }), el('span', { class: 'step-name' }, s), el('span', { class: 'offscreen' })),
    (node, s) => {
      const i = steps.indexOf(s);
      const state = i < at ? 'done' : i === at ? (status.phase === 'error' ? 'failed' : 'current') : 'todo';
      if (node.dataset.state === state) return;
      node.dataset.state = state;
      setAttr(node, 'aria-current', state === 'current' || state === 'failed' ? 'step' : null);
      node.children[0].replaceChildren(state === 'done' ? icon('ok') : state === 'failed' ? '!' : String(i + 1));
      setText(node.children[2], { done: ' (done)', failed: ' (failed)', current: '', todo: '' }[state]);
    });
  const p = status.progress_signals.byte_weighted.percent;
  document.title = `${status.phase === 'copying' ? `${percent(p)} ` : ''}${guided.title} – Migration`;
  const role = status.read_only ? 'Read-only' : status.role === 'viewer' ? 'Viewer' : '';
  show(byId('role'), role);
  setText(byId('role'), role);
  show(byId('unreachable'), status.unreachable);
  if (status.unreachable) setText(byId('unreachable'), `The databases cannot be read since ${moment(status.unreachable.since)}: ${printable(status.unreachable.reason)}. What you see is as it was last known.`);
  setText(byId('foot-version'), status.version ? `Version ${status.version}` : '');
  setText(byId('foot-migration'), status.migration_id ? `Migration ${status.migration_id}` : '');
  setText(byId('foot-leader'), status.leader ? `Led by ${printable(status.leader)}` : '');
  show(byId('foot-report'), status.started_at);
}

const toneIcons = { busy: 'live', ask: 'info', good: 'ok', warn: 'warning', bad: 'danger', idle: 'none' };

function drawNow() {
  const box = byId('now');
  if (box.dataset.tone !== guided.tone) {
    box.dataset.tone = guided.tone;
    byId('now-icon').replaceChildren(icon(toneIcons[guided.tone]));
  }
  if (byId('now-title').textContent !== guided.title) {
    if (box.dataset.known) announce(`${guided.title}. ${guided.next}`);
    box.dataset.known = 'true';
    setText(byId('now-title'), guided.title);
  }
  setText(byId('now-sentence'), printable(guided.sentence));
  list(byId('now-reasons'), guided.reasons, (t) => t, (t) => el('li', {}, el('bdi', {}, printable(t))));
  show(byId('now-reasons'), guided.reasons.length);
  setText(byId('now-next'), guided.next);
  setText(byId('now-cost-label'), guided.costLabel);
  setText(byId('now-cost'), guided.cost);
  show(byId('now-next-box'), guided.next);
  show(byId('now-cost-box'), guided.cost);
  const b = status.progress_signals.byte_weighted;
  const moving = status.phase === 'copying' && b.total_bytes > 0;
  const progress = byId('now-progress');
  show(progress, moving);
  if (moving) {
    setAttr(progress, 'aria-valuenow', Math.floor(b.percent));
    byId('now-done').style.transform = `scaleX(${Math.min(1, b.percent / 100)})`;
    byId('now-flight').style.transform = `scaleX(${Math.min(1, (b.copied_bytes + b.in_flight_bytes) / b.total_bytes)})`;
  }
  const stalled = status.progress_signals.stall_detection;
  const waits = status.waiting ? `Waiting since ${moment(status.waiting.since)}, and trying again: ${status.waiting.reason}` : stalled?.stalled ? `Nothing moves: ${stalled.reason}` : '';
  show(byId('now-waiting'), waits);
  setText(byId('now-waiting'), printable(waits));
  const numbers = figures(status);
  show(byId('now-figures'), numbers.length);
  list(byId('now-figures'), numbers, ([label]) => label, ([label]) => el('div', {}, el('dt', {}, label), el('dd', {}, el('b'), el('span', { class: 'muted' }))),
    (node, [, value, note]) => {
      setText(node.children[1].children[0], value);
      setText(node.children[1].children[1], note);
    });
}

const labelOf = (name, force, label) => label ?? (force && actions[name].forced) ?? actions[name].label;

function drawActions() {
  const { primary, secondary } = guided;
  const viewer = status.read_only || status.role === 'viewer';
  const button = byId('primary');
  const may = primary?.command ? permission(status, primary.command) : { allowed: true };
  show(button, primary && !(primary.command && viewer));
  if (primary) {
    setText(button, labelOf(primary.command, primary.force, primary.label) || actions[primary.command].label);
    button.disabled = !may.allowed || Boolean(primary.command && (status.running || asked)) || (primary.show === 'recheck' && preflight.loading);
    button.dataset.command = primary.command ?? primary.show ?? 'link';
  }
  // What ends a migration stands apart. Forcing is offered only where it can be done.
  const also = [...secondary];
  if (status.phase === 'replicating' && status.cutover_readiness.level === 'warning' && primary?.command !== 'switch') also.push('switch!');
  if (status.phase === 'switched' && status.way_back?.error) also.push('revert!');
  drawButtons(byId('secondary'), viewer ? [] : also.filter((n) => !(n === 'switch' && status.cutover_readiness.level === 'warning')));
  drawButtons(byId('ending'), viewer ? [] : ['abort', 'reset'].filter((n) => (permission(status, n).allowed || (status.running && byId('ending').querySelector(`[data-command="${n}"]`))) && primary?.command !== n && !also.includes(n)));
  const why = viewer ? (status.read_only ? 'This dashboard is read-only: it shows the migration, and nothing can be changed here.' : 'You are a viewer: you see everything, and an operator can change it.')
    : primary?.command && !may.allowed && !status.running && !asked ? `“${labelOf(primary.command, primary.force, primary.label) || actions[primary.command].label}” cannot be done now: ${may.reason}` : '';
  show(byId('now-why'), why);
  setText(byId('now-why'), why);
}

// A name that ends in ! is the command by force.
function drawButtons(box, names) {
  list(box, names, (n) => n, (n) => {
    const [name, force] = [n.replace('!', ''), n.endsWith('!')];
    return el('button', { type: 'button', class: `button${actions[name].ends || force ? ' quiet-danger' : ''}`, 'data-command': n, onclick: () => perform(name, force) }, (force && actions[name].forced) || actions[name].label);
  }, (node, n) => {
    const may = permission(status, n.replace('!', ''));
    node.disabled = !may.allowed || Boolean(status.running || asked);
    setAttr(node, 'title', may.allowed ? null : may.reason);
  });
}

// What these do is told by the phase.
const plain = ['start', 'copy', 'pause', 'resume', 'retry', 'reset', 'complete', 'abort'];

// drawCommand tells of the command under way, and what became of the last.
function drawCommand() {
  const now = status.running ?? asked;
  show(byId('running'), now);
  if (now) {
    const since = now.since ? Math.max(0, (serverNow() - Date.parse(now.since)) / 1000) : 0;
    setText(byId('running-text'), `${actions[now.command]?.doing ?? now.command}…${since > 2 ? ` for ${duration(since)}` : ''}`);
  }
  const last = status.last_command;
  const box = byId('result');
  const age = last?.ended ? serverNow() - Date.parse(last.ended) : Infinity;
  const worthTelling = last?.ended && !(last.success && plain.includes(last.command));
  if (worthTelling && last.ended !== dismissed && age < (last.success ? 60_000 : 600_000) && box.dataset.ended !== last.ended) {
    box.dataset.ended = last.ended;
    if (last.success) succeeded(last.message);
    else failed(Object.assign(new Error(last.message), { reasons: last.reasons }));
  }
  if (last?.success && box.dataset.ended && (now || age > 60_000)) show(box, false); // an error stays until it is put away
}

function succeeded(message) {
  setAttr(byId('result'), 'class', 'note good');
  byId('result-text').replaceChildren(icon('ok'), ' ', printable(message.charAt(0).toUpperCase() + message.slice(1)));
  show(byId('result'), true);
}

function failed(error) {
  setAttr(byId('result'), 'class', 'note bad');
  showError(byId('result-text'), error);
  show(byId('result'), true);
}

async function perform(name, force) {
  const consent = actions[name].consent?.(status, force);
  // The dialog need not stay until the end: it closes as soon as the server says that the command is under way.
  const send = () => new Promise((resolve, reject) => { run(name, consent?.force ?? force, resolve).then(resolve, reject); });
  try {
    if (consent) await ask(consent, status.databases, send);
    else await send();
  } catch (error) {
    failed(error);
  }
}

async function run(name, force, begun) {
  asked = { command: name, begun };
  byId('result').hidden = true;
  // The button is about to be disabled, and a keyboard must not lose its place.
  if (byId('now-actions').contains(document.activeElement)) byId('now-title').focus({ preventScroll: true });
  schedule();
  try {
    const answer = await command(name, force);
    if (!answer.accepted && answer.message && !plain.includes(name)) succeeded(answer.message);
    if (name === 'reset') checkDatabases();
  } catch (error) {
    if (!byId('dialog').open && actions[name].consent) { // it was closed meanwhile
      failed(error);
      return;
    }
    throw error;
  } finally {
    asked = null;
    live.poll();
    schedule();
  }
}

async function checkDatabases() {
  if (preflight.loading) return;
  preflight.loading = true;
  schedule();
  try {
    let answer = null;
    while (!answer) {
      try {
        answer = await get('preflight-checks', 60_000);
      } catch (error) {
        if (error.code !== 'preflight_running') throw error;
        await new Promise((resume) => { setTimeout(resume, 2000); });
      }
    }
    Object.assign(preflight, { findings: answer.findings, error: null, checkedAt: answer.checked_at ?? new Date().toISOString() });
  } catch (error) {
    preflight.error = error.message;
  }
  preflight.loading = false;
  schedule();
}

// While rows are compared, what that says is read once in a while.
async function readVerification() {
  if (!status || (status.running?.command !== 'verify' && byId('verification').dataset.running !== 'true')) return;
  try {
    drawVerifyOutput(await get('verify-output'), status);
  } catch { /* there is none yet, or the server is away, which is told elsewhere */ }
}

const connectionWords = { connecting: 'Connecting', live: 'Live', polling: 'Updating', lost: 'Lost', unauthorized: 'Signed out' };

function connection({ state, since }) {
  byId('connection').dataset.state = state;
  setText(byId('connection-text'), connectionWords[state]);
  const lost = state === 'lost' || state === 'unauthorized';
  if (!lost && !byId('lost').hidden) announce('Connected again.');
  setText(byId('lost-title'), state === 'lost' ? 'The server does not answer.' : state === 'unauthorized' ? 'You are signed out.' : '');
  const last = status ? `What you see is of ${time(since)}. ` : '';
  setText(byId('lost-text'), state === 'lost' ? `${last}The migration does not depend on this page. Trying again…` : state === 'unauthorized' ? `${last}Reload the page to sign in again.` : '');
  show(byId('reload'), state === 'unauthorized');
  show(byId('lost'), lost);
  document.body.classList.toggle('stale', lost);
}

let opened = false; // whether the tab that suits the phase was opened

const live = new Live({
  connection,
  status(fresh) {
    const phase = status?.phase;
    fresh.tables ??= [];
    heed(fresh);
    status = fresh;
    skew = Date.parse(fresh.at) - Date.now() || 0;
    if (asked && fresh.running?.command === asked.command) asked.begun();
    record(fresh);
    if (phase !== fresh.phase && (fresh.phase === 'waiting' || (fresh.phase === 'error' && !fresh.failed_phase))) checkDatabases();
    if (!opened) {
      opened = true;
      showTab(location.hash.slice(1) || (fresh.phase === 'waiting' ? 'checks' : 'overview'));
    } else if (phase === 'waiting' && fresh.phase !== 'waiting' && shownTab() === 'checks') showTab('overview');
    schedule();
  },
  log(entries) {
    logFeed.add(entries);
    schedule();
  },
  activity(entries) {
    activityFeed.add(entries);
    schemaChanges.unshift(...entries.filter((e) => e.kind === 'schema').reverse());
    schemaChanges.splice(50);
    schedule();
  },
});

byId('primary').addEventListener('click', () => {
  const { primary } = guided;
  if (primary.command) perform(primary.command, primary.force ?? false);
  else if (primary.show === 'recheck') {
    showTab('checks');
    checkDatabases();
  } else if (primary.show) {
    byId(primary.show).scrollIntoView({ block: 'start' });
    byId(primary.show).focus({ preventScroll: true });
  } else {
    const link = el('a', { href: primary.link, download: true });
    document.body.append(link);
    link.click();
    link.remove();
  }
});
byId('recheck').addEventListener('click', checkDatabases);
byId('failed-retry').addEventListener('click', () => perform('retry-indexes', false));
byId('reload').addEventListener('click', () => location.reload());
byId('result-close').addEventListener('click', () => {
  dismissed = status?.last_command?.ended ?? null;
  byId('result').hidden = true;
  byId('now-title').focus();
});
startOverview();
startAfter(schedule);
startTabs(() => {
  if (shownTab() === 'logs') logFeed.shown();
  schedule();
});
live.start();
setInterval(schedule, 1000); // for what counts seconds
setInterval(readVerification, 2000);
