// Small line charts of the last minutes, as SVG in real pixels. Points are kept here; drawing happens only when asked for.
import { el, svg, setAttr, setText } from './dom.js';
import { none, duration, time } from './format.js';

const span = 15 * 60 * 1000; // what is kept and shown at most, in ms
const shortest = 2 * 60 * 1000;
const height = 132;
const margin = { top: 10, right: 8, bottom: 20, left: 66 };

// niceCeiling is the next 1, 2, 2.5 or 5 times a power of ten.
function niceCeiling(v) {
  const power = 10 ** Math.floor(Math.log10(v));
  return [1, 2, 2.5, 5, 10].map((m) => m * power).find((m) => m >= v * 0.999);
}

// Chart draws one or two series with the same unit: {title, about, format, series: [{label, area}]}, where area fills below the line.
export class Chart {
  constructor({ title, format, series, least = 1 }) {
    Object.assign(this, { title, format, series, least });
    this.points = []; // [time in ms, value, value…]; a value may be null
    this.width = 0;
    this.hover = null;
    this.lines = series.map((_, i) => svg('path', { class: `line line-${i}`, fill: 'none' }));
    this.fills = series.map((s, i) => (s.area ? svg('path', { class: `fill fill-${i}` }) : null));
    this.grid = [0, 1, 2].map(() => svg('line', { class: 'grid' }));
    this.yLabels = [0, 1, 2].map(() => svg('text', { class: 'axis', 'text-anchor': 'end' }));
    this.xLabels = ['start', 'end'].map((anchor) => svg('text', { class: 'axis', 'text-anchor': anchor }));
    this.cursor = svg('line', { class: 'cursor' });
    this.dots = series.map((_, i) => svg('circle', { class: `dot dot-${i}`, r: 3 }));
    this.plot = svg('svg', { class: 'plot', role: 'img', height },
      ...this.grid, ...this.fills.filter(Boolean), ...this.lines, ...this.yLabels, ...this.xLabels, this.cursor, ...this.dots);
    this.values = series.map(() => el('b', { class: 'value' }, none));
    this.when = el('span', { class: 'when' });
    this.element = el('figure', { class: 'chart' },
      el('figcaption', {}, el('span', { class: 'chart-title' }, title), this.when),
      el('div', { class: 'legend' }, series.map((s, i) => el('span', { class: 'key' }, el('i', { class: `swatch swatch-${i}` }), `${s.label} `, this.values[i]))),
      this.plot);
    this.plot.addEventListener('pointermove', (e) => this.point(e.offsetX));
    this.plot.addEventListener('pointerleave', () => this.point(null));
    new ResizeObserver(([entry]) => {
      this.width = Math.floor(entry.contentRect.width);
      this.draw();
    }).observe(this.element);
  }

  push(at, values) {
    const last = this.points.at(-1);
    if (last && at - last[0] < 500) this.points.pop(); // two a second are enough
    this.points.push([at, ...values.map((v) => (Number.isFinite(v) ? v : null))]);
    const old = this.points.findIndex((p) => p[0] > at - span);
    if (old > 0) this.points.splice(0, old);
  }

  clear() { this.points = []; }

  point(x) {
    this.hover = x;
    this.draw();
  }

  draw() {
    if (this.width < 80 || this.element.hidden) return;
    const { points, width } = this;
    const end = points.at(-1)?.[0] ?? Date.now();
    const begin = Math.min(points[0]?.[0] ?? end, end - shortest);
    const x = (t) => margin.left + ((t - begin) / (end - begin)) * (width - margin.left - margin.right);
    let top = this.least;
    for (const p of points) for (const v of p.slice(1)) if (v > top) top = v;
    top = niceCeiling(top);
    const base = height - margin.bottom;
    const y = (v) => base - (v / top) * (base - margin.top);

    setAttr(this.plot, 'viewBox', `0 0 ${width} ${height}`);
    setAttr(this.plot, 'width', width);
    this.grid.forEach((line, i) => {
      const at = Math.round(y((top * i) / 2)) + 0.5;
      place(line, { x1: margin.left, x2: width - margin.right, y1: at, y2: at });
      place(this.yLabels[i], { x: margin.left - 8, y: at + 4 });
      setText(this.yLabels[i], this.format((top * i) / 2).replace('.0 ', ' '));
    });
    this.xLabels.forEach((label, i) => place(label, { x: i ? width - margin.right : margin.left, y: height - 4 }));
    setText(this.xLabels[0], `${duration((end - begin) / 1000)} ago`);
    setText(this.xLabels[1], 'now');

    const step = Math.max(1, Math.floor(points.length / Math.max(60, width / 2))); // no more points than pixels show
    this.series.forEach((_, i) => {
      let path = '', area = '', started = null, lastX = 0;
      const close = () => { if (started !== null) area += `L${lastX} ${base}L${started} ${base}Z`; started = null; };
      for (let n = 0; n < points.length; n += step) {
        let v = null; // the highest of those that share a pixel: a peak must not vanish
        for (const p of points.slice(n, n + step)) if (p[i + 1] !== null) v = Math.max(v ?? 0, p[i + 1]);
        if (v === null) {
          close();
          continue;
        }
        const px = x(points[n][0]).toFixed(1), part = `${started === null ? 'M' : 'L'}${px} ${y(v).toFixed(1)}`;
        started ??= px;
        lastX = px;
        path += part;
        area += part;
      }
      close();
      setAttr(this.lines[i], 'd', path || null);
      if (this.fills[i]) setAttr(this.fills[i], 'd', area || null);
    });
    this.caption(x, y, base);
  }

  // caption shows the latest values, or those under the pointer.
  caption(x, y, base) {
    let shown = this.points.at(-1);
    if (this.hover !== null && shown) {
      shown = this.points.reduce((best, p) => (Math.abs(x(p[0]) - this.hover) < Math.abs(x(best[0]) - this.hover) ? p : best));
    }
    const hovering = this.hover !== null && shown;
    setText(this.when, hovering ? time(shown[0]) : '');
    setAttr(this.cursor, 'class', hovering ? 'cursor shown' : 'cursor');
    if (hovering) place(this.cursor, { x1: x(shown[0]), x2: x(shown[0]), y1: margin.top, y2: base });
    this.series.forEach((_, i) => {
      const v = shown?.[i + 1] ?? null;
      setText(this.values[i], v === null ? none : this.format(v));
      setAttr(this.dots[i], 'class', hovering && v !== null ? `dot dot-${i} shown` : `dot dot-${i}`);
      if (hovering && v !== null) place(this.dots[i], { cx: x(shown[0]), cy: y(v) });
    });
    const said = this.series.map((s, i) => {
      const all = this.points.map((p) => p[i + 1]).filter((v) => v !== null);
      return all.length ? `${s.label}: now ${this.format(all.at(-1))}, highest ${this.format(all.reduce((a, b) => Math.max(a, b)))}` : `${s.label}: no figures yet`;
    });
    setAttr(this.plot, 'aria-label', `${this.title}. ${said.join('. ')}.`);
  }
}

function place(node, attributes) {
  for (const [key, value] of Object.entries(attributes)) setAttr(node, key, value);
}
