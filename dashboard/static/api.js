// Talking to the server: requests, and the live connection, which falls back to polling and recovers by itself.
// All addresses are relative to the page, so it works under any path.

export class ApiError extends Error {
  constructor(status, body) {
    super(body?.error || `The server answered ${status}.`);
    this.status = status;
    this.code = body?.code ?? '';
    this.reasons = body?.reasons ?? [];
    this.body = body;
  }
}

const patience = 20_000; // for reading; commands are answered after 25 s at the latest

async function request(path, options, timeout) {
  const response = await fetch(path, { cache: 'no-store', credentials: 'same-origin', signal: AbortSignal.timeout(timeout), ...options });
  const body = await response.json().catch(() => null);
  if (!response.ok) throw new ApiError(response.status, body);
  if (body === null) throw new ApiError(response.status, { error: 'The server’s answer could not be read.' });
  return body;
}

export const get = (path, timeout = patience) => request(path, {}, timeout);

// post asks for a command. A 202 has accepted: it goes on, and /status tells its end.
export const post = (path, force) => request(path + (force ? '?force=1' : ''), { method: 'POST' }, 60_000);

const endpoints = {
  start: 'start-migration', copy: 'start-copy', pause: 'pause-sync', resume: 'resume-sync', switch: 'switch-traffic', revert: 'revert-switch',
  complete: 'cleanup', abort: 'abort', retry: 'retry', reset: 'reset', verify: 'verify', 'retry-indexes': 'retry-indexes',
};

export const command = (name, force) => post(endpoints[name], force);

// Live keeps the page up to date. handlers: status(object), log([…]), activity([…]), connection({state, since}), where state is connecting, live,
// polling, lost or unauthorized.
export class Live {
  constructor(handlers) {
    this.handlers = handlers;
    this.state = 'connecting';
    this.heard = Date.now(); // when the server was last heard of
    this.lastLog = this.lastActivity = 0;
    this.retryTimer = 0;
    this.pause = 0; // the timer until the next status is read
    this.text = null; // what was heard meanwhile
  }

  start() {
    this.connect();
    setInterval(() => this.watch(), 2500);
    addEventListener('online', () => this.again());
    document.addEventListener('visibilitychange', () => { if (!document.hidden && this.state !== 'live') this.again(); });
  }

  // again tries at once.
  again() {
    if (this.state === 'unauthorized') return;
    if (!this.source || this.source.readyState === EventSource.CLOSED) this.connect();
    this.poll();
  }

  connect() {
    clearTimeout(this.retryTimer);
    this.retryTimer = 0;
    this.source?.close();
    const source = this.source = new EventSource('events');
    const on = (kind, take) => source.addEventListener(kind, (event) => {
      this.heard = Date.now();
      this.set('live');
      take(event.data);
    });
    on('status', (text) => this.soon(text));
    on('log', (text) => this.logs(JSON.parse(text)));
    on('activity', (text) => this.activity(JSON.parse(text)));
    source.onerror = () => {
      // The browser connects again by itself, unless the server answered with something else than a stream.
      if (source.readyState === EventSource.CLOSED) this.retryTimer = setTimeout(() => this.connect(), this.state === 'lost' ? 3000 : 30_000);
      this.poll();
    };
  }

  // soon reads the latest status, a few times a second at most: however fast they come, the others are not even parsed.
  soon(text) {
    this.text = text;
    if (this.pause) return;
    const read = () => {
      const latest = this.text;
      this.text = null;
      this.pause = latest === null ? 0 : setTimeout(read, 250);
      if (latest !== null) this.handlers.status(JSON.parse(latest));
    };
    read();
  }

  logs(entries) {
    const fresh = entries.filter((e) => e.id > this.lastLog);
    if (!fresh.length) return;
    this.lastLog = fresh.at(-1).id;
    this.handlers.log(fresh);
  }

  activity(entries) {
    const fresh = entries.filter((e) => e.id > this.lastActivity);
    if (!fresh.length) return;
    this.lastActivity = fresh.at(-1).id;
    this.handlers.activity(fresh);
  }

  set(state) {
    if (state !== this.state || state === 'lost') this.handlers.connection({ state, since: this.heard });
    this.state = state;
  }

  // watch notices a stream that is silent: a proxy may hold a connection open whose other end is gone.
  watch() {
    if (this.state === 'unauthorized') return;
    const silent = Date.now() - this.heard;
    if (this.state !== 'live' || silent > 12_000) this.poll();
    if (this.state === 'live' && silent > 45_000) this.connect();
  }

  async poll() {
    if (this.polling) return;
    this.polling = true;
    try {
      const status = await get('status', 10_000);
      const quiet = this.source?.readyState === EventSource.OPEN;
      this.heard = Date.now();
      this.handlers.status(status);
      if (this.state === 'lost' && this.source?.readyState === EventSource.CLOSED) this.connect(); // it is back
      this.set(quiet ? 'live' : 'polling');
      if (!quiet) {
        if (this.source?.readyState === EventSource.CLOSED && !this.retryTimer) this.retryTimer = setTimeout(() => this.connect(), 30_000);
        const [logs, activity] = await Promise.all([
          get(this.lastLog ? `logs?after=${this.lastLog}` : 'logs?lines=200'),
          get(this.lastActivity ? `activity?after=${this.lastActivity}` : 'activity'),
        ]);
        this.logs(logs.entries ?? []);
        this.activity(activity.events ?? []);
      }
    } catch (error) {
      if (error.status === 401) {
        this.source?.close();
        clearTimeout(this.retryTimer);
        this.set('unauthorized');
      } else if (Date.now() - this.heard > 4000 || this.state === 'connecting') {
        this.set('lost');
      }
    } finally {
      this.polling = false;
    }
  }
}
