// Numbers, sizes and times as text for people.

const integer = new Intl.NumberFormat('en');
const short = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 });
const one = new Intl.NumberFormat('en', { maximumFractionDigits: 1 });

export const none = '–';

const isNumber = (n) => typeof n === 'number' && Number.isFinite(n);

export const count = (n) => (isNumber(n) ? integer.format(Math.round(n)) : none);

// shortCount has at most five characters or so: 12.3M.
export const shortCount = (n) => (isNumber(n) ? (Math.abs(n) < 10000 ? integer.format(Math.round(n)) : short.format(n)) : none);

export function bytes(n) {
  if (!isNumber(n)) return none;
  const units = ['B', 'kB', 'MB', 'GB', 'TB', 'PB'];
  let unit = 0;
  while (Math.abs(n) >= 1000 && unit < units.length - 1) {
    n /= 1000;
    unit++;
  }
  return `${Math.abs(n) >= 100 || unit === 0 || n === 0 ? Math.round(n) : n.toFixed(1)} ${units[unit]}`;
}

export const byteRate = (n) => (isNumber(n) ? `${bytes(n)}/s` : none);

export const rowRate = (n) => (isNumber(n) ? `${shortCount(n)}/s` : none);

export function percent(n) {
  if (!isNumber(n)) return none;
  if (n >= 99.95 && n < 100) return '99.9%'; // not done is not 100
  if (n > 0 && n < 0.05) return 'less than 0.1%';
  return n > 0 && n < 10 || n > 99 && n < 100 ? `${n.toFixed(1)}%` : `${Math.round(n)}%`;
}

// duration is precise while short, and rough when long.
export function duration(seconds) {
  if (!isNumber(seconds)) return none;
  if (seconds < 0) seconds = 0;
  if (seconds < 0.95) return `${Math.floor(seconds * 1000 + 1e-6)} ms`; // as the server says it
  if (seconds < 10) return `${one.format(seconds)} s`;
  if (seconds < 100) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 100) return `${minutes} min`;
  const hours = seconds / 3600;
  if (hours < 48) return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, '0')} min`;
  return hours < 2400 ? `${one.format(hours / 24)} days` : 'more than 100 days';
}

export const nanoseconds = (n) => (isNumber(n) ? duration(n / 1e9) : none);

const clock = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit', second: '2-digit', hourCycle: 'h23' });
const dayClock = new Intl.DateTimeFormat(undefined, { month: 'short', day: 'numeric', hour: '2-digit', minute: '2-digit', hourCycle: 'h23' });

function date(value) {
  const d = new Date(value);
  return value === null || value === undefined || Number.isNaN(d.getTime()) ? null : d;
}

export function time(value) {
  const d = date(value);
  return d ? clock.format(d) : none;
}

// moment adds the day if it is not today.
export function moment(value) {
  const d = date(value);
  if (!d) return none;
  return d.toDateString() === new Date().toDateString() ? clock.format(d) : dayClock.format(d);
}

export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;
