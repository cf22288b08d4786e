// What can be asked of a migration: how it is called, and for what is dangerous, what a dialog says before it is done.
// consent(status, force) returns {title, intro, on: ['source', 'target'], happens: [], sql, after, word, confirm}; word has to be typed.
import { count, plural } from './format.js';

export const actions = {
  start: { label: 'Start the migration', doing: 'Starting' },
  copy: { label: 'Start the copy', doing: 'Starting the copy' },
  pause: { label: 'Pause', doing: 'Pausing' },
  resume: { label: 'Resume', doing: 'Resuming' },
  retry: { label: 'Try again', doing: 'Trying again' },
  'retry-indexes': { label: 'Try the failed objects again', permit: 'retry', doing: 'Trying the failed objects again' },
  verify: { label: 'Compare every row', forced: 'Send these tables again', doing: 'Comparing every row', consent: (status, force) => (force ? resend(status) : null) },
  switch: { label: 'Switch traffic…', forced: 'Switch all the same…', doing: 'Switching', consent: switching },
  revert: { label: 'Revert the switch…', forced: 'Revert, and lose rows…', doing: 'Reverting', consent: reverting },
  complete: { label: 'Complete the migration…', doing: 'Completing', consent: completing },
  abort: { label: 'Abort…', ends: true, doing: 'Aborting', consent: aborting },
  reset: { label: 'Start over…', ends: true, doing: 'Starting over', consent: resetting },
};

// permission tells whether a command makes sense now: {allowed, reason}.
export function permission(status, name) {
  return status.commands?.[actions[name].permit ?? name] ?? { allowed: false, reason: 'The server does not offer it.' };
}

const quote = (identifier) => (/^[a-z_][a-z0-9_]*$/.test(identifier) ? identifier : `"${identifier.replaceAll('"', '""')}"`);

// sample is a table to show statements with.
function sample(status) {
  const t = status.tables[0];
  return t ? `${quote(t.schema)}.${quote(t.name)}` : 'public.orders';
}

const tables = (status) => plural(status.tables.length, 'table');

function switching(status, force) {
  const soft = (force && status.cutover_readiness.soft_blockers) || [];
  return {
    title: force ? 'Switch to PlanetScale all the same?' : 'Switch to PlanetScale?',
    intro: force ? 'You are about to switch although something is missing on PlanetScale:' : 'From this moment on, PlanetScale is the database that takes writes.',
    reasons: soft,
    on: ['source', 'target'],
    happens: [
      `On Heroku, INSERT, UPDATE, DELETE and TRUNCATE are refused with “permission denied” by triggers on ${tables(status)}, whoever writes. Reading goes on. Privileges are not touched.`,
      'Transactions that have written are waited for, three seconds at most. If one does not end, writes are allowed again and nothing has happened.',
      'The last changes and all sequences are brought to PlanetScale, which is then opened for writes. That usually takes about a second.',
      ...(soft.length ? ['What is missing on PlanetScale stays missing. You can make it later by hand.'] : []),
      'Until your application has the new DATABASE_URL, its writes fail. This page shows the commands next.',
    ],
    sql: `-- On Heroku. The triggers are there already; until now they refuse nothing.
CREATE TRIGGER heroku_migrator_fence
  BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON ${sample(status)}
  FOR EACH STATEMENT EXECUTE FUNCTION heroku_migrator.fence();
-- … one on each of ${tables(status)}, and on their partitions

-- Replacing the function closes all tables in the same instant, without a lock on any:
CREATE OR REPLACE FUNCTION heroku_migrator.fence() RETURNS trigger …
  RAISE EXCEPTION 'permission denied for table %: this database has moved'
    USING ERRCODE = 'insufficient_privilege';

-- On PlanetScale, in one transaction: the last rows, every sequence, and what
-- had to wait for the switch (triggers and rules of your schema)
SELECT setval('…', …);`,
    after: 'You can go back with “Revert the switch” until you complete the migration. Rows written to PlanetScale meanwhile come back with it.',
    word: force ? 'force switch' : 'switch', confirm: force ? 'Switch all the same' : 'Switch traffic',
  };
}

function reverting(status, force) {
  const back = status.way_back;
  const loses = force || !back?.enabled;
  return {
    title: loses ? 'Go back to Heroku, and lose rows?' : 'Go back to Heroku?',
    intro: loses ? 'Rows that were written to PlanetScale since the switch, and are not on Heroku yet, stay behind and are then overwritten by what Heroku has.'
      : 'Everything written to PlanetScale since the switch is brought to Heroku first, then Heroku takes writes again.',
    reasons: back?.error ? [back.error] : [],
    on: ['target', 'source'],
    happens: [
      ...(loses ? ['Rows that cannot be brought back are lost to your application.']
        : [`On PlanetScale, writes are refused by triggers on ${tables(status)}; transactions that have written are waited for.`, 'The last changes and all sequences are brought to Heroku. That takes about a second.']),
      'On Heroku, the triggers stop refusing. Privileges were never touched, so there are none to restore.',
      'PlanetScale follows Heroku again, and you can switch once more at any time.',
      'Point your application back to Heroku: this page shows the commands.',
    ],
    sql: `-- On PlanetScale, before the last rows are brought back:
CREATE OR REPLACE FUNCTION heroku_migrator.fence() RETURNS trigger …
  RAISE EXCEPTION 'permission denied for table %: this database has moved';

-- On Heroku, once it has them:
CREATE OR REPLACE FUNCTION heroku_migrator.fence() RETURNS trigger
  LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;`,
    after: loses ? 'This cannot be undone.' : 'If anything fails before it is done, PlanetScale goes on taking writes as now.',
    word: loses ? 'lose rows' : 'revert', confirm: loses ? 'Revert, and lose rows' : 'Revert the switch', force: loses,
  };
}

function completing(status) {
  return {
    title: 'Complete the migration?',
    intro: 'Do this when your application runs on PlanetScale and you are sure to stay.',
    on: ['source', 'target'],
    happens: [
      `The triggers on ${tables(status)} and the schema heroku_migrator are removed, table by table, from Heroku first and then from PlanetScale. Your own tables, rows and privileges are not touched.`,
      'Heroku takes writes again after that. Make sure that nothing uses it any more: what is written there reaches nobody.',
      'What is written to PlanetScale is no longer brought to Heroku.',
    ],
    sql: `-- On both databases
DROP TRIGGER heroku_migrator_fence ON ${sample(status)};
-- … every trigger named heroku_migrator_…, on ${tables(status)}
DROP SCHEMA heroku_migrator CASCADE;  -- the migrator's own: its functions, change logs and journal`,
    after: 'This cannot be undone: the way back to Heroku ends. Download the report before or after.',
    word: 'complete', confirm: 'Complete the migration',
  };
}

function aborting(status) {
  const copied = status.progress_signals.byte_weighted.copied_bytes > 0;
  return {
    title: 'Abort the migration?',
    intro: 'Your application goes on with Heroku as if nothing had been.',
    on: ['source', 'target'],
    happens: [
      `On Heroku, the triggers on ${tables(status)} and the schema heroku_migrator are removed. Your own tables, rows and privileges are not touched.`,
      copied ? 'What was copied stays on PlanetScale, but is not followed any more. For another try, use an empty database.' : 'The cloned schema stays on PlanetScale. For another try, use an empty database.',
      'The progress of the copy is lost. To stop only for a while, pause instead.',
    ],
    sql: `-- On Heroku
DROP TRIGGER heroku_migrator_fence ON ${sample(status)};
-- … every trigger named heroku_migrator_…
DROP SCHEMA heroku_migrator CASCADE;

-- On PlanetScale: the migrator's journal and triggers only
DROP SCHEMA heroku_migrator CASCADE;`,
    after: 'This cannot be undone.',
    word: 'abort', confirm: 'Abort the migration',
  };
}

function resetting() {
  return {
    title: 'Start over?',
    intro: 'This page forgets the migration that has ended, so that another can begin.',
    on: [],
    happens: ['Nothing is changed on either database.', 'The report and the figures of this migration are gone: download the report first.', 'Another migration needs an empty PlanetScale database: set PLANETSCALE_URL to it.'],
    after: '', word: 'reset', confirm: 'Start over',
  };
}

function resend(status) {
  const v = status.verification;
  return {
    title: 'Compare again, and send tables that differ?',
    intro: `${plural(v?.differences?.length ?? 0, 'table')} differed when ${count(v?.rows)} rows were compared.`,
    reasons: v?.differences ?? [],
    on: ['source', 'target'],
    happens: ['Every row is compared again.', 'Tables that differ are emptied on PlanetScale and sent whole from Heroku, in one transaction.', 'Your application goes on writing to Heroku; nothing is blocked.'],
    after: 'Heroku is only read.', confirm: 'Compare and send again',
  };
}
