// What the page says at a glance: where the migration is, what happens now, what to do next, and what that costs.
// Pure functions of the status: nothing here touches the page.
import { bytes, byteRate, count, duration, moment, nanoseconds, percent, plural } from './format.js';

export const steps = ['Check', 'Set up', 'Copy', 'Follow', 'Switch', 'Complete'];

const stepOf = {
  waiting: 0, starting: 0, configuring: 1, ready_to_copy: 2, copying: 2, rebuilding_indexes: 2, replicating: 3,
  switched: 4, cleaning_up: 5, completed: 6,
};

const switchCost = 'Writes are refused while the last changes move, usually for about a second; after that PlanetScale takes them. Until your application uses it, its writes to Heroku fail, and reading goes on.';

const undisturbed = 'Your application goes on writing to Heroku; nothing is blocked.';

// phaseOf is the phase, or that which failed.
export const phaseOf = (status) => (status.phase === 'error' ? status.failed_phase : status.phase);

// heed makes what a switch was just refused for a part of the readiness, which is computed without comparing the schemas again. Without it the page
// would offer no way to force the switch.
export function heed(status) {
  const { last_command: last, cutover_readiness: ready } = status;
  if (status.phase === 'replicating' && ready.level === 'ready' && last?.command === 'switch' && !last.success && last.code === 'cutover_override_required') {
    Object.assign(ready, { level: 'warning', can_force: true, soft_blockers: last.reasons ?? [last.message] });
  }
}

// takesWrites is the side that the application may write to.
export function takesWrites(status) {
  const phase = phaseOf(status);
  return phase === 'switched' || phase === 'completed' || (phase === 'cleaning_up' && status.goal === 'completed') ? 'target' : 'source';
}

// stepNumber is the step under way, from 0; 6 when all are done, -1 when it is given up. A migration in error stands where it failed.
export function stepNumber(status) {
  const phase = phaseOf(status);
  if (phase === 'aborted' || status.goal === 'aborted') return -1;
  if (phase in stepOf) return stepOf[phase];
  const done = status.progress_signals?.event_checklist ?? {};
  if (done.switched) return 4;
  if (done.indexes_built) return 3;
  if (done.changes_captured) return 2;
  return done.preflight ? 1 : 0;
}

// guide returns {tone, title, sentence, next, cost, costLabel, primary, secondary: [commands], reasons}. tone is busy, ask, good, warn, bad or idle. A primary of
// {command} asks for that command, {show} leads to a part of the page, {link} to a file.
export function guide(status, view) {
  const tell = guides[status.phase] ?? unknown;
  const told = { tone: 'busy', title: '', sentence: '', next: '', cost: '', primary: null, secondary: [], reasons: [], costLabel: 'What it costs', ...tell(status, view) };
  if (status.state === 'paused' && ['starting', 'configuring', 'ready_to_copy', 'copying', 'rebuilding_indexes', 'replicating'].includes(status.phase)) {
    Object.assign(told, {
      tone: 'warn', title: 'Paused',
      sentence: `${status.phase === 'copying' ? `${copied(status)} ` : ''}Nothing is copied or applied now. Changes on Heroku go on being captured, and are caught up afterwards.`,
      next: 'Resume when you are ready. What is done stays done.',
      cost: `${undisturbed} The change log on Heroku grows meanwhile.`,
      primary: { command: 'resume' }, secondary: [],
    });
  }
  const doing = underWay[status.running?.command];
  if (doing) Object.assign(told, { tone: 'busy', primary: null, secondary: [], reasons: [] }, doing);
  return told;
}

// underWay is what the longer commands say while they run.
const underWay = {
  verify: { title: 'Comparing every row', next: 'Nothing to do: it may take a while, and goes on if you close this page.', cost: `Both databases read all tables once, table by table. ${undisturbed}` },
  switch: { title: 'Switching', sentence: 'PlanetScale catches up first. Then writes are refused, and the last changes and all sequences move.', next: 'Have the new DATABASE_URL at hand.', cost: 'Writes are refused at the end, for about a second. If anything fails before, they are allowed again.' },
  revert: { title: 'Going back to Heroku', sentence: 'What was written to PlanetScale is brought to Heroku, which then takes writes again.', next: 'Nothing to do yet.', cost: 'Writes are refused at the end, for about a second.' },
  complete: { title: 'Completing', next: 'Nothing to do.' },
  abort: { title: 'Aborting', next: 'Nothing to do.', cost: 'Each table is locked for less than a second.' },
};

const unknown = (status) => ({ title: status.phase, sentence: status.message, tone: 'idle' });

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

const copied = (status) => {
  const b = status.progress_signals.byte_weighted;
  return `${capital(percent(b.percent))} is copied, ${bytes(b.copied_bytes)} of ${bytes(b.total_bytes)}.`;
};

const guides = {
  waiting(status, view) {
    if (status.unreachable) {
      return { tone: 'bad', title: 'A database cannot be reached', sentence: 'The page goes on by itself as soon as it can be.', reasons: [status.error || status.unreachable.reason], next: 'Check both connection URLs, and that the databases run.', cost: 'Nothing has been changed.' };
    }
    const start = {
      cost: `Starting clones the schema to PlanetScale and adds triggers to the tables on Heroku, one table at a time, each under a lock of less than a second. ${undisturbed}`,
      primary: { command: 'start' },
    };
    const check = { show: 'recheck', label: 'Check again' };
    if (view.preflight.loading && !view.preflight.findings) {
      return { title: 'Checking both databases', sentence: 'This reads versions, privileges, extensions, sizes, keys and settings. It changes nothing.' };
    }
    if (!view.preflight.findings) {
      return { tone: 'bad', title: 'The databases could not be checked', sentence: view.preflight.error ?? 'The checks have not run.', next: 'Check again.', cost: 'Checking changes nothing.', primary: check };
    }
    const { blocker, warning } = tally(view.preflight.findings);
    if (blocker) {
      return {
        tone: 'bad', title: `${plural(blocker, 'finding')} to resolve first`, sentence: 'The migration cannot start like this. Each finding below says what to do.',
        next: 'Resolve them, then check again.', cost: 'Checking changes nothing on either database.', primary: check,
      };
    }
    if (warning) {
      return { ...start, tone: 'warn', title: 'Ready to start, with something to read', sentence: `The checks found nothing that stops the migration, and ${plural(warning, 'warning')}: read ${warning === 1 ? 'it' : 'them'} first.`, next: 'Read what stands under “Checks”, then start.' };
    }
    return { ...start, tone: 'ask', title: 'Ready to start', sentence: 'Both databases were checked, and nothing is in the way.', next: 'Start the migration.' };
  },

  starting: () => ({ title: 'Checking both databases', sentence: 'One more look before anything is changed.', next: 'Nothing to do: it goes on by itself.', cost: undisturbed }),

  configuring: (status) => ({
    title: 'Setting up',
    sentence: status.waiting ? 'Something is in the way, and it is tried again by itself.' : 'The schema is cloned to PlanetScale, and triggers that note changes are added on Heroku, one table at a time.',
    next: 'Nothing to do: this usually takes a minute or two.',
    cost: 'Each trigger takes a lock on its table for less than a second and gives up if the table is busy. Your application goes on writing.',
  }),

  ready_to_copy: () => ({
    tone: 'ask', title: 'Ready to copy', sentence: 'The schema is on PlanetScale, and from now on every change on Heroku is captured.', next: 'Start the copy.',
    cost: `The copy reads every row of Heroku once. It slows down by itself when Heroku gets busy, and can be paused. ${undisturbed}`,
    primary: { command: 'copy' },
  }),

  copying(status) {
    const { throughput_eta: speed } = status.progress_signals;
    const left = speed.eta_seconds === null || speed.eta_seconds === undefined ? '' : ` ${capital(`about ${duration(speed.eta_seconds)}`.replace('about more', 'more'))} left at ${byteRate(speed.bytes_per_second)}.`;
    return {
      title: 'Copying rows', sentence: `${copied(status)}${left}`,
      next: 'Nothing to do. You can close this page: what is copied stays copied, through restarts too.',
      cost: status.throttle ? `The copy gives way to your application: it runs at ${percent(status.throttle.percent)} of its speed.` : undisturbed,
      secondary: ['pause'],
    };
  },

  rebuilding_indexes(status) {
    const failed = status.failed_objects?.length ?? 0;
    return {
      title: 'Building indexes and constraints', tone: failed ? 'warn' : 'busy',
      sentence: failed ? `All rows are copied. ${plural(failed, 'object')} could not be built; the rest goes on.` : 'All rows are copied. What remains of the indexes, foreign keys and statistics is made on PlanetScale.',
      next: 'Nothing to do: it goes on by itself.', cost: `All the work is on PlanetScale. ${undisturbed}`,
      secondary: ['pause'],
    };
  },

  replicating,
  switched,

  cleaning_up: (status) => ({ title: status.goal === 'aborted' ? 'Aborting' : 'Completing', sentence: 'The triggers and everything else of the migrator are removed from both databases, one table at a time.', next: 'Nothing to do.', cost: 'Each table is locked for less than a second.' }),

  completed: (status) => ({
    tone: 'good', title: 'The migration is complete',
    sentence: `Your data lives on PlanetScale. Nothing of the migrator is left on either database.${withoutWrites(status)}`,
    next: 'Keep the report, prove that nothing is left, then remove what you do not need any more: see below.',
    costLabel: 'Mind', cost: 'The old database takes writes again: make sure that nothing uses it any more.',
    primary: { link: 'export/report.html', label: 'Download the report' }, secondary: ['reset'],
  }),

  aborted: () => ({
    tone: 'idle', title: 'The migration was aborted', sentence: 'Nothing of it is left on Heroku, which takes writes as before. What was copied is still on PlanetScale.',
    next: 'For another try, use an empty PlanetScale database.', cost: 'Starting over forgets this migration here; it changes nothing on Heroku.', primary: { command: 'reset' },
  }),

  error(status) {
    const failed = status.failed_objects?.length ?? 0;
    if (!status.failed_phase) {
      return {
        tone: 'bad', title: 'The migration did not start', sentence: 'The checks found what has to be resolved first. Nothing was changed on either database.',
        next: 'Resolve what is listed here, then try again.', cost: undisturbed, reasons: status.reasons ?? [status.error ?? ''], primary: { command: 'retry' }, secondary: ['reset'],
      };
    }
    return {
      tone: 'bad', title: failed ? `${plural(failed, 'object')} could not be built` : 'Something went wrong',
      sentence: failed ? 'All that could be built is there. What failed is listed under “Failed objects”, with the reason.' : 'The migration has stopped and needs you:',
      next: 'Remove the cause, then try again. What is done stays done, and changes go on being captured.',
      cost: takesWrites(status) === 'target' ? 'PlanetScale takes the writes of your application.' : undisturbed,
      secondary: status.failed_phase === 'switched' ? ['revert', 'complete'] : [],
      reasons: failed ? [] : [status.error || status.message || 'The last step failed.'], primary: { command: failed ? 'retry-indexes' : 'retry' },
    };
  },
};

function replicating(status) {
  const ready = status.cutover_readiness;
  const delay = status.progress_signals.replication_delay;
  const seconds = delay.seconds ?? null;
  const behind = delay.rows_waiting > 0 || seconds === null || seconds > 5;
  const following = seconds === null ? 'PlanetScale applies what changed on Heroku during the copy.'
    : behind ? `PlanetScale is ${duration(seconds)} behind${delay.rows_waiting ? `, with ${plural(delay.rows_waiting, 'row')} to apply` : ''}.${delay.catch_up_seconds ? ` It catches up in about ${duration(delay.catch_up_seconds)}.` : ''}`
      : 'PlanetScale has every row of Heroku and follows each change within moments.';
  const secondary = ['pause'];
  const v = status.verification;
  if (ready.level === 'blocked') {
    const differs = v?.differences?.length;
    const primary = !differs ? null : v.resent ? { command: 'verify', label: 'Compare every row again' } : { command: 'verify', force: true };
    return {
      tone: 'bad', title: 'The switch has to wait', sentence: `${following} ${plural(ready.hard_blockers?.length ?? 0, 'reason speaks', 'reasons speak')} against a switch.`,
      next: primary ? 'See the reasons under “Readiness”, and resolve them.' : 'See the reasons under “Readiness”. Some go away by themselves.', cost: undisturbed, primary, secondary,
    };
  }
  if (ready.level === 'warning') {
    return {
      tone: 'warn', title: 'In sync, with something to settle', sentence: `${following} Something is missing on PlanetScale that the switch can do without.`,
      next: 'See “Readiness”. You can switch without what is missing, and make it later by hand.', cost: v ? switchCost : undisturbed,
      primary: v ? { command: 'switch', force: true } : { command: 'verify' }, secondary: [...(v ? ['verify'] : ['switch']), ...secondary],
    };
  }
  if (ready.level !== 'ready') return { title: 'Following', sentence: following, next: 'Nothing to do yet.', cost: undisturbed, secondary };
  if (!v) {
    return {
      tone: 'ask', title: behind ? 'Catching up' : 'In sync', sentence: following, next: 'Compare every row on both sides before you switch. It can be skipped.',
      cost: `Both databases read all tables once, table by table. ${undisturbed}`, primary: { command: 'verify' }, secondary: ['switch', ...secondary],
    };
  }
  return {
    tone: 'good', title: behind ? 'Catching up' : 'In sync, and verified', sentence: `${following} ${plural(v.rows, 'row')} in ${plural(v.tables, 'table')} were the same on both sides at ${moment(v.at)}.`,
    next: behind ? 'Switch when you are ready: it first waits until PlanetScale has caught up.' : 'Switch when you are ready.',
    cost: switchCost,
    primary: { command: 'switch' }, secondary: ['verify', ...secondary],
  };
}

function switched(status, view) {
  const way = status.way_back;
  const back = !way?.enabled ? 'There is no way back without loss: the way back is off.'
    : way.error ? 'The way back waits: see below.' : 'Until you complete, you can go back without losing a row.';
  const moved = view.appMoved;
  return {
    tone: way?.error ? 'warn' : 'ask', title: moved ? 'Switched: complete it when you are sure' : 'Switched: point your application to PlanetScale',
    sentence: `PlanetScale has every row and takes writes; Heroku refuses them.${withoutWrites(status)} ${back}`,
    next: moved ? 'Complete the migration, which removes everything of the migrator and ends the way back.' : 'Set your application’s DATABASE_URL with the commands below, and try it out.',
    cost: moved ? 'Completing takes the way back away. Heroku takes writes again after it.' : 'While your application still uses Heroku, its writes fail with “permission denied”; reads go on.',
    primary: moved ? { command: 'complete' } : { show: 'after-switch', label: 'Show the commands' },
    secondary: moved ? ['revert'] : ['revert', 'complete'],
  };
}

function withoutWrites(status) {
  const ns = status.switch_report?.without_writes_ns;
  return ns ? ` Nobody could write for ${nanoseconds(ns)}.` : '';
}

export function tally(findings) {
  const n = { blocker: 0, warning: 0, info: 0, ok: 0 };
  for (const f of findings) n[f.severity] = (n[f.severity] ?? 0) + 1;
  return n;
}

// figures are the few numbers under the sentence: [label, value, note].
export function figures(status) {
  const p = status.progress_signals;
  const tables = status.tables.length;
  const live = p.table_phase?.live ?? 0;
  switch (status.phase) {
    case 'copying': {
      const rows = status.tables.reduce((n, t) => n + t.rows_copied + (t.rows_in_flight ?? 0), 0);
      return [
        ['Speed', byteRate(p.throughput_eta.bytes_per_second), `on average ${byteRate(p.throughput_eta.average_bytes_per_second)}`],
        ['Time left', duration(p.throughput_eta.eta_seconds), `${bytes(p.byte_weighted.total_bytes - p.byte_weighted.copied_bytes)} to go`],
        ['Rows copied', count(rows), `${count((p.table_phase?.indexed ?? 0) + live)} of ${plural(tables, 'table')} done`],
      ];
    }
    case 'replicating': {
      const d = p.replication_delay;
      return [
        ['Behind by', duration(d.seconds), { growing: 'growing', shrinking: 'shrinking', steady: 'steady' }[d.trend] ?? ''],
        ['Rows waiting', count(d.rows_waiting), d.catch_up_seconds ? `caught up in ${duration(d.catch_up_seconds)}` : ''],
        ['Rows applied', count(d.rows_applied), `in ${plural(d.rounds, 'round')}`],
      ];
    }
    case 'switched': case 'completed': {
      const r = status.switch_report;
      const list = [];
      if (r) list.push(['Without writes', nanoseconds(r.without_writes_ns), `${plural(r.rows_drained, 'row')} moved meanwhile`]);
      if (status.way_back?.enabled) list.push(['Way back behind by', duration(status.way_back.lag_seconds), `${plural(status.way_back.rows, 'row')} brought back`]);
      if (status.verification) list.push(['Rows compared', count(status.verification.rows), status.verification.differences?.length ? 'with differences' : 'all the same']);
      return list;
    }
    default: return [];
  }
}
