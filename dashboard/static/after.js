// What is to be done outside of this page: pointing the application to its new database, or back, and clearing up at the end.
import { byId, copyButton, el, setAttr, setText, show } from './dom.js';
import { phaseOf } from './guide.js';

const fields = {
  app: { id: 'app-name', empty: 'YOUR-APP', valid: /^[a-z][a-z0-9-]{0,29}$/ },
  addon: { id: 'addon-name', empty: 'ADDON-NAME', valid: /^[a-z][a-z0-9-]{0,99}$/ },
  migrator: { id: 'migrator-name', empty: 'YOUR-MIGRATION-APP', valid: /^[a-z][a-z0-9-]{0,29}$/ },
};

// commands are templates: (app, addon, migrator) → text. Words are checked above, so none can carry more than a name into a shell.
const commands = {
  'cmd-find': (v) => `heroku addons -a ${v.app}`,
  'cmd-move': (v) => `heroku addons:attach ${v.addon} --as OLD_DATABASE -a ${v.app} \\
  && heroku addons:detach DATABASE -a ${v.app} \\
  && heroku config:set DATABASE_URL="$(heroku config:get PLANETSCALE_URL -a ${v.migrator})" -a ${v.app}`,
  'cmd-set': (v) => `heroku config:set DATABASE_URL="$(heroku config:get PLANETSCALE_URL -a ${v.migrator})" -a ${v.app}`,
  'cmd-check': (v) => `heroku config:get DATABASE_URL -a ${v.app} | sed 's/.*@//'   # its host, without the password\nheroku logs --tail -a ${v.app}`,
  'cmd-back': (v) => `heroku config:unset DATABASE_URL -a ${v.app} \\
  && heroku addons:attach ${v.addon} --as DATABASE -a ${v.app} \\
  && heroku addons:detach OLD_DATABASE -a ${v.app}`,
  'cmd-back-set': (v) => `heroku config:set DATABASE_URL="$(heroku config:get HEROKU_URL -a ${v.migrator})" -a ${v.app}`,
  'cmd-prove': (v) => `heroku pg:psql ${v.addon} -a ${v.app} -c "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'heroku\\_migrator\\_%'"
heroku pg:psql ${v.addon} -a ${v.app} -c "SELECT count(*) FROM pg_namespace WHERE nspname = 'heroku_migrator'"`,
  'cmd-prove-sql': () => `SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'heroku\\_migrator\\_%';
SELECT count(*) FROM pg_namespace WHERE nspname = 'heroku_migrator';`,
  'cmd-destroy': (v) => `heroku apps:destroy ${v.migrator}`,
  'cmd-remove': (v) => `heroku pg:backups:capture ${v.addon} -a ${v.app}\nheroku pg:backups:download -a ${v.app}\nheroku addons:destroy ${v.addon} -a ${v.app}`,
};

const remembered = (key) => {
  try { return localStorage.getItem(`migrator.${key}`) ?? ''; } catch { return ''; }
};
const remember = (key, value) => {
  try { localStorage.setItem(`migrator.${key}`, value); } catch { /* it lasts until the page is closed */ }
};

const moved = { switch: null, done: false }; // whether the user says that the application has moved, since which switch

export const appMoved = (status) => moved.done && moved.switch === status.switched_at;

// startAfter prepares the fields and commands; changed is called when the user says that the application has moved.
export function startAfter(changed) {
  for (const [key, field] of Object.entries(fields)) {
    const input = byId(field.id);
    input.value = remembered(key);
    input.addEventListener('input', () => {
      remember(key, input.value.trim());
      fill();
    });
  }
  for (const id of Object.keys(commands)) {
    const code = el('code', { id });
    byId(`${id}-box`).append(el('pre', { tabindex: '0', 'aria-label': 'Command' }, code), copyButton(() => code.textContent));
  }
  fill();
  moved.switch = remembered('moved') || null;
  moved.done = Boolean(moved.switch);
  byId('app-moved').addEventListener('change', (event) => {
    moved.done = event.target.checked;
    moved.switch = event.target.dataset.at;
    remember('moved', moved.done ? moved.switch : '');
    changed();
  });
}

function fill() {
  const values = {};
  for (const [key, field] of Object.entries(fields)) {
    const input = byId(field.id);
    const text = input.value.trim();
    const ok = field.valid.test(text);
    values[key] = ok ? text : field.empty;
    setAttr(input, 'aria-invalid', text && !ok ? 'true' : null);
    show(byId(`${field.id}-error`), text && !ok);
  }
  for (const [id, text] of Object.entries(commands)) setText(byId(id), text(values));
}

export function drawAfter(status) {
  const phase = phaseOf(status);
  const reverted = phase === 'replicating' && status.revert_report && Date.parse(status.revert_report.at) > 0;
  const at = { switched: 'switched', cleaning_up: null, completed: 'completed' }[phase] ?? (reverted ? 'reverted' : null);
  show(byId('after-switch'), at === 'switched');
  show(byId('after-complete'), at === 'completed');
  show(byId('after-revert'), at === 'switched' || at === 'reverted');
  show(byId('names'), at);
  show(byId('outside'), at);
  byId('outside').dataset.at = at ?? '';
  setText(byId('outside-title'), { switched: 'Point your application to PlanetScale', completed: 'What is left to do', reverted: 'Point your application back to Heroku' }[at] ?? '');
  setText(byId('after-revert-title'), at === 'reverted' ? 'The commands' : 'If you go back to Heroku');
  if (byId('after-revert').dataset.at !== at) {
    byId('after-revert').dataset.at = at ?? '';
    byId('after-revert').open = at === 'reverted';
  }
  show(byId('revert-first'), at === 'switched');
  const box = byId('app-moved');
  box.dataset.at = status.switched_at ?? '';
  box.checked = appMoved(status);
}
