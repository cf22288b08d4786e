// The one dialog: explains an action on the databases it concerns, and asks for a word to be typed.
import { byId, el, icon, name, printable, setText, show } from './dom.js';

// endpoint describes one of the databases in words.
export function endpoint(side, db) {
  const label = side === 'source' ? 'Source · Heroku' : 'Target · PlanetScale';
  return el('div', { class: `db db-${side}` }, el('span', { class: 'db-side' }, label),
    db?.database ? [name(db.database, { class: 'db-name' }), el('span', { class: 'db-host' }, 'on ', name(hostPort(db)))] : el('span', { class: 'db-host' }, 'not known yet'));
}

export const hostPort = (db) => `${db.host ?? 'an unknown host'}${db.port && db.port !== 5432 ? `:${db.port}` : ''}`;

// ask shows the dialog. run() does what was asked for and may throw; its error is shown in the dialog, which stays open then.
// It resolves to true if it was done.
export function ask(consent, databases, run) {
  const dialog = byId('dialog');
  const form = byId('dialog-form');
  const input = byId('dialog-word');
  const confirm = byId('dialog-confirm');
  const cancel = byId('dialog-cancel');
  const error = byId('dialog-error');
  const opener = document.activeElement;

  setText(byId('dialog-title'), consent.title);
  setText(byId('dialog-intro'), consent.intro);
  fill('dialog-reasons', consent.reasons ?? [], (text) => el('li', {}, printable(text)));
  fill('dialog-databases', consent.on, (side) => el('li', {}, endpoint(side, databases?.[side])));
  fill('dialog-happens', consent.happens, (text) => el('li', {}, text));
  setText(byId('dialog-sql'), consent.sql ?? '');
  show(byId('dialog-sql-box'), consent.sql);
  byId('dialog-sql-box').open = false;
  setText(byId('dialog-after'), consent.after ?? '');
  show(byId('dialog-after'), consent.after);
  show(byId('dialog-typed'), consent.word);
  setText(byId('dialog-say'), consent.word ?? '');
  setText(confirm, consent.confirm);
  input.value = '';
  show(error, false);

  return new Promise((resolve) => {
    let busy = false, done = false;
    const agreed = () => !consent.word || input.value.trim().toLowerCase() === consent.word;
    const refresh = () => {
      confirm.disabled = busy || !agreed();
      input.disabled = busy;
      cancel.textContent = busy ? 'Close' : 'Cancel';
    };
    const submit = async (event) => {
      event.preventDefault();
      if (busy || !agreed()) return;
      busy = true;
      refresh();
      show(error, false);
      setText(confirm, 'Asking…');
      try {
        await run();
        done = true;
        dialog.close();
      } catch (e) {
        busy = false;
        setText(confirm, consent.confirm);
        refresh();
        showError(error, e);
      }
    };
    const closed = () => {
      form.removeEventListener('submit', submit);
      input.removeEventListener('input', refresh);
      cancel.removeEventListener('click', close);
      // What was asked for is told at the top; its button may be gone.
      (!done && opener?.isConnected ? opener : byId('now-title')).focus();
      resolve(done);
    };
    const close = () => dialog.close();
    form.addEventListener('submit', submit);
    input.addEventListener('input', refresh);
    cancel.addEventListener('click', close);
    dialog.addEventListener('close', closed, { once: true });
    refresh();
    dialog.showModal();
    dialog.scrollTop = 0;
    byId('dialog-title').focus(); // what will happen is read before the field
  });
}

function fill(id, items, make) {
  const box = byId(id);
  box.replaceChildren(...items.map(make));
  show(box, items.length);
}

// showError tells why something was refused.
export function showError(box, error) {
  const reasons = error.reasons?.length > 1 ? error.reasons : []; // a single one is in the message
  const text = error.name === 'TimeoutError' ? 'The server has not answered. It may have begun all the same: look at what the page says before you try again.'
    : error instanceof TypeError ? 'The server could not be reached. It may have begun all the same: look at what the page says before you try again.'
      : reasons.length ? 'It was refused:' : error.message;
  box.replaceChildren(el('p', {}, icon('danger'), ' ', printable(text.charAt(0).toUpperCase() + text.slice(1))), reasons.length ? el('ul', {}, reasons.map((r) => el('li', {}, printable(r)))) : '');
  show(box, true);
}

