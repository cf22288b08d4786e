// The panels of the overview: charts, readiness, verification, the way back, workers, builds, failures, the change log, hooks.
// Each shows itself only when it has something to say.
import { Chart } from './charts.js';
import { byId, el, icon, list, name, printable, setAttr, setText, show } from './dom.js';
import { byteRate, bytes, count, duration, moment, nanoseconds, percent, plural, rowRate } from './format.js';
import { phaseOf } from './guide.js';

const charts = {
  speed: new Chart({ title: 'Copy throughput', format: byteRate, series: [{ label: 'Speed', area: true }, { label: 'Average' }], least: 1e6 }),
  load: new Chart({ title: 'Speed that Heroku’s load allows', format: percent, series: [{ label: 'Of full speed', area: true }], least: 100 }),
  lag: new Chart({ title: 'PlanetScale is behind by', format: duration, series: [{ label: 'Replication lag', area: true }], least: 1 }),
  rows: new Chart({ title: 'Rows written and applied', format: rowRate, series: [{ label: 'Written' }, { label: 'Applied' }], least: 10 }),
  sessions: new Chart({ title: 'Sessions at work on Heroku', format: count, series: [{ label: 'Of the application', area: true }], least: 5 }),
  back: new Chart({ title: 'Heroku is behind by', format: duration, series: [{ label: 'Way back lag', area: true }], least: 1 }),
  log: new Chart({ title: 'Change log on Heroku', format: bytes, series: [{ label: 'Size', area: true }], least: 1e6 }),
};
const shownIn = {
  copying: ['speed', 'load', 'sessions', 'log'], rebuilding_indexes: ['speed', 'sessions', 'log'], replicating: ['lag', 'rows', 'sessions', 'log'], switched: ['back'],
};

export function startOverview() {
  byId('charts').append(...Object.values(charts).map((c) => c.element));
}

let migration; // whose history the charts hold

// record notes figures; it is called for each status, drawn or not.
export function record(status) {
  if (migration !== status.migration_id) restore(status.migration_id);
  const at = Date.parse(status.at) || Date.now();
  const p = status.progress_signals;
  if (status.phase === 'copying') {
    charts.speed.push(at, [p.throughput_eta.bytes_per_second, p.throughput_eta.average_bytes_per_second]);
    charts.load.push(at, [status.state === 'paused' ? null : status.throttle?.percent ?? 100]);
  }
  if (status.phase === 'replicating') {
    charts.lag.push(at, [p.replication_delay.seconds]);
    charts.rows.push(at, [p.replication_delay.rows_per_second_in, p.replication_delay.rows_per_second_out]);
  }
  if (status.source_load) charts.sessions.push(at, [status.source_load.active_sessions]);
  if (status.phase === 'switched') charts.back.push(at, [status.way_back?.lag_seconds]);
  if (status.change_log && status.phase !== 'switched') charts.log.push(at, [status.change_log.bytes]);
}

// The charts survive a reload of the page.
addEventListener('pagehide', () => {
  try {
    sessionStorage.setItem('migrator.charts', JSON.stringify({ migration, points: Object.fromEntries(Object.entries(charts).map(([key, c]) => [key, c.points])) }));
  } catch { /* no storage, or no room: they begin anew */ }
});

function restore(id) {
  migration = id;
  let kept = null;
  try { kept = JSON.parse(sessionStorage.getItem('migrator.charts')); } catch { /* as above */ }
  for (const [key, chart] of Object.entries(charts)) chart.points = (id && kept?.migration === id && kept.points?.[key]) || [];
}

export function drawOverview(status) {
  const phase = phaseOf(status);
  const wanted = shownIn[phase] ?? [];
  for (const [key, chart] of Object.entries(charts)) {
    show(chart.element, wanted.includes(key) && (key !== 'back' || status.way_back?.enabled) && chart.points.length);
    chart.draw();
  }
  show(byId('charts-panel'), [...byId('charts').children].some((c) => !c.hidden));
  readiness(status);
  verification(status);
  wayBack(status);
  workers(status);
  builds(status);
  stages(status);
  failures(status);
  changeLog(status);
  reports(status);
  hooks(status);
  show(byId('overview-empty'), ![...byId('overview-panels').children].some((c) => c.id !== 'overview-empty' && !c.hidden) && byId('charts-panel').hidden);
}

const texts = (box, items) => list(box, items, (t) => t, (t) => el('li', {}, el('bdi', {}, printable(t))));

function readiness(status) {
  const r = status.cutover_readiness;
  show(byId('readiness'), status.phase === 'replicating');
  if (status.phase !== 'replicating') return;
  const [drawing, word] = {
    ready: ['ok', 'Ready to switch'], warning: ['warning', 'Can be switched, with something missing'], blocked: ['danger', 'Cannot be switched now'], not_ready: ['wait', 'Not ready yet'],
  }[r.level] ?? ['info', r.level];
  const box = byId('readiness-level');
  if (box.dataset.level !== r.level) {
    box.dataset.level = r.level;
    box.replaceChildren(icon(drawing), el('span', {}, word));
  }
  for (const [id, items] of [['hard', r.hard_blockers], ['soft', r.soft_blockers], ['notes', r.notes]]) {
    texts(byId(`readiness-${id}`), items ?? []);
    show(byId(`readiness-${id}-box`), items?.length);
  }
}

// verification shows a comparison under way from what it has said, and else its result.
function verification(status) {
  const v = status.verification;
  const running = status.running?.command === 'verify';
  show(byId('verification'), v || running);
  byId('verification').dataset.running = running;
  show(byId('verification-running'), running);
  if (!v) {
    setText(byId('verification-result'), '');
    return texts(byId('verification-differences'), []);
  }
  const n = v.differences?.length ?? 0;
  setText(byId('verification-result'), `${n ? `${plural(n, 'table')} of ${count(v.tables)} differed` : `All ${plural(v.rows, 'row')} in ${plural(v.tables, 'table')} are the same on both sides`}. Compared at ${moment(v.at)}, in ${duration(v.seconds)}.${v.resent ? ' The tables that differed were sent whole: compare once more.' : ''}`);
  setAttr(byId('verification-result'), 'data-good', !n);
  texts(byId('verification-differences'), v.differences ?? []);
}

export function drawVerifyOutput(output, status) {
  setText(byId('verification-progress'), `${count(output.lines?.length ?? 0)} of ${plural(status.tables.length, 'table')} compared`);
  const lines = (output.lines ?? []).slice(-200).join('\n');
  const box = byId('verification-output');
  if (box.textContent !== lines) {
    setText(box, printable(lines));
    box.scrollTop = box.scrollHeight;
  }
  show(byId('verification-output-box'), lines);
}

function wayBack(status) {
  const w = status.way_back;
  show(byId('way-back'), w);
  if (!w) return;
  setText(byId('way-back-text'), !w.enabled ? 'It is off: a revert would leave behind what was written to PlanetScale since the switch.'
    : `What is written to PlanetScale is brought to Heroku, so that you can go back without losing a row. Heroku is behind by ${w.lag_seconds === null || w.lag_seconds === undefined ? 'an unknown time: the first round is under way' : duration(w.lag_seconds)}. ${plural(w.rows, 'row')} came back in ${plural(w.rounds, 'round')}.`);
  show(byId('way-back-error'), w.error);
  setText(byId('way-back-error'), w.error ? `It waits: ${printable(w.error)}` : '');
}

function workers(status) {
  const all = status.workers ?? [];
  show(byId('workers'), all.length || status.throttle);
  setText(byId('workers-count'), all.length ? String(all.length) : '');
  show(byId('throttle'), status.throttle);
  if (status.throttle) setText(byId('throttle-text'), `The copy gives way to your application and runs at ${percent(status.throttle.percent)}: ${printable(status.throttle.reason)}.`);
  list(byId('workers-list'), all.map((w, i) => ({ ...w, i })), (w) => w.i,
    () => el('li', {}, name('', { class: 'what' }), el('span', { class: 'figures-small' }), el('bdi', { class: 'who' })),
    (node, w) => {
      setText(node.children[0], printable(w.table));
      setText(node.children[1], `${plural(w.rows, 'row')} · ${bytes(w.bytes)} · ${duration(w.seconds)}`);
      setText(node.children[2], printable(w.process));
    });
}

function builds(status) {
  const all = status.builds ?? [];
  show(byId('builds'), all.length);
  list(byId('builds-list'), all, (b) => `${b.table} ${b.object}`,
    () => el('li', {}, name('', { class: 'what' }), el('span', { class: 'figures-small' }), el('progress', { max: 100 })),
    (node, b) => {
      setText(node.children[0], printable(b.object));
      setText(node.children[1], `${b.phase || 'waiting'}${b.percent > 0 ? `, ${percent(b.percent)}` : ''} · ${duration(b.seconds)}`);
      const bar = node.children[2];
      setAttr(bar, 'aria-label', `${printable(b.object)}: this step`);
      if (b.percent > 0) setAttr(bar, 'value', b.percent.toFixed(1));
      else setAttr(bar, 'value', null);
    });
}

const stageWords = { tables: 'Tables, types, functions', indexes: 'Indexes and constraints', foreign_keys: 'Foreign keys', finish: 'Views and the rest', switch: 'Left for the switch', validate: 'Constraints validated after the switch' };

function stages(status) {
  const all = Object.keys(stageWords).filter((s) => status.objects?.[s]?.total).map((s) => ({ stage: s, ...status.objects[s] }));
  show(byId('objects'), all.length && ['configuring', 'ready_to_copy', 'copying', 'rebuilding_indexes', 'error'].includes(status.phase));
  list(byId('objects-list'), all, (s) => s.stage,
    (s) => el('li', {}, el('span', { class: 'what' }, stageWords[s.stage]), el('span', { class: 'figures-small' }), el('progress', { 'aria-label': stageWords[s.stage] })),
    (node, s) => {
      setText(node.children[1], `${count(s.done)} of ${count(s.total)}${s.failed ? `, ${count(s.failed)} failed` : ''}`);
      setAttr(node.children[2], 'max', s.total);
      setAttr(node.children[2], 'value', s.done);
    });
}

function failures(status) {
  const failed = status.failed_objects ?? [];
  show(byId('failed'), failed.length);
  setText(byId('failed-count'), String(failed.length));
  show(byId('failed-retry'), status.commands?.retry?.allowed && status.phase !== 'error'); // there it is the main action
  list(byId('failed-list'), failed, (f) => `${f.object}\n${f.error}`,
    (f) => el('li', {}, el('strong', {}, name(f.object)), el('p', { class: 'mono' }, el('bdi', {}, printable(f.error.startsWith(`${f.object}: `) ? f.error.slice(f.object.length + 2) : f.error)))));
  const skipped = status.skipped_objects ?? [];
  show(byId('skipped'), skipped.length);
  texts(byId('skipped-list'), skipped);
}

function changeLog(status) {
  const log = status.change_log;
  show(byId('change-log'), log && !['switched', 'cleaning_up', 'completed', 'aborted'].includes(status.phase));
  if (!log) return;
  setText(byId('change-log-text'), `${bytes(log.bytes)} on Heroku${log.age_seconds > 0 ? `; its oldest entry is ${duration(log.age_seconds)} old` : ''}. It holds the keys of rows that changed, and shrinks as PlanetScale catches up.`);
  show(byId('change-log-warning'), log.warning);
  setText(byId('change-log-warning'), log.warning ?? '');
}

function reports(status) {
  const parts = (r) => [
    ['At', moment(r.at)], ['Without writes', nanoseconds(r.without_writes_ns)], ['Stopping writes', nanoseconds(r.fence_ns)], ['Moving the last changes', nanoseconds(r.drain_ns)],
    r.hook_ns >= 1e6 ? ['Hooks', nanoseconds(r.hook_ns)] : null, ['Finishing', nanoseconds(r.finish_ns)], ['Rows in the last changes', count(r.rows_drained)],
    ['Sequences set', count(r.sequences)], r.large_objects ? ['Large objects', count(r.large_objects)] : null, r.fence_attempts > 1 ? ['Attempts', count(r.fence_attempts)] : null,
  ].filter(Boolean);
  for (const [id, report] of [['switch-report', status.switch_report], ['revert-report', status.revert_report]]) {
    show(byId(id), report);
    if (!report) continue;
    list(byId(`${id}-list`), parts(report), ([label]) => label, ([label]) => el('div', {}, el('dt', {}, label), el('dd')), (node, [, value]) => setText(node.children[1], value));
  }
}

const hookWords = { before_fence: 'Before writes are refused', before_switch: 'Before the switch', after_switch: 'After the switch', after_revert: 'After a revert' };
const hookStates = { started: ['wait', 'under way'], done: ['ok', 'done'], failed: ['danger', 'failed'], unknown: ['warning', 'outcome unknown'] };

function hooks(status) {
  const all = status.hooks ?? [];
  show(byId('hooks'), all.length);
  list(byId('hooks-list'), all, (h) => `${h.number} ${h.point} ${h.state} ${h.error ?? ''}`, (h) => {
    const [drawing, word] = hookStates[h.state] ?? ['info', h.state];
    return el('li', {}, icon(drawing), el('div', {}, el('strong', {}, hookWords[h.point] ?? h.point), ` · ${word} · ${moment(h.at)}`, h.error ? el('p', {}, el('bdi', {}, printable(h.error))) : null));
  });
}
