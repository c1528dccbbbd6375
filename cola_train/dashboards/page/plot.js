// A plot of curves on a canvas: drawn by pixel columns, zoomed and panned with the mouse, a finger or keys.

const MARGIN = { left: 58, right: 12, top: 8, bottom: 26 };
const GROUPS = []; // of plots that share their x axis

/** Plots that are zoomed together. range: what of x is shown, null all. */
class Group {
  constructor() {
    this.plots = [];
    this.range = null;
    this.log = false;
    GROUPS.push(this);
  }

  /** All of x that the curves have, positive on a logarithmic axis. */
  whole() {
    let low = Infinity;
    let high = -Infinity;
    for (const plot of this.plots) {
      for (const { x } of plot.curves) {
        const first = this.log ? x.find((value) => value > 0) : x[0];
        if (first === undefined || x.length === 0) continue;
        low = Math.min(low, first);
        high = Math.max(high, x[x.length - 1]);
      }
    }
    if (!(high >= low)) return [this.log ? 1 : 0, this.log ? 10 : 1];
    if (high > low) return [low, high];
    return this.log ? [low / 2, high * 2] : [low - 0.5, high + 0.5];
  }

  scale() {
    const [least, most] = this.whole();
    if (this.range && (this.range[1] <= least || this.range[0] >= most)) this.range = null;
    const [low, high] = this.range || [least, most];
    return new Scale(low, high, this.log);
  }

  /** Show from place a to place b (0..1 of what is shown now), inside of what there is. */
  show(a, b) {
    const scale = this.scale();
    const [least, most] = this.whole();
    let low = scale.value(a);
    let high = scale.value(b);
    const whole = new Scale(least, most, this.log);
    const width = Math.min(whole.place(high) - whole.place(low), 1);
    if (!(width > 1e-7)) return;
    let start = whole.place(low);
    start = Math.min(Math.max(start, 0), 1 - width);
    low = whole.value(start);
    high = whole.value(start + width);
    this.range = width > 0.99999 ? null : [low, high];
    this.draw();
  }

  reset() {
    this.range = null;
    this.draw();
  }

  /** Plots out of sight are drawn when they come into it. */
  draw() {
    for (const plot of this.plots) plot.due = true;
    drawDue();
  }
}

let frame = null;

function drawDue() {
  if (frame !== null) return;
  frame = requestAnimationFrame(() => {
    frame = null;
    for (const group of GROUPS) {
      for (const plot of group.plots) if (plot.due && plot.inSight()) plot.draw();
    }
  });
}

/**
 * One plot. curves: {name, colour, x, y, low, high, band, dots, faint}, x ascending; low and high
 * are the extremes of each point's lines, if it stands for several; band: whether to show them.
 * marks: {x, colour, symbol}.
 */
class Plot {
  constructor(group, title, options = {}) {
    this.group = group;
    this.format = options.format || short;
    this.formatX = options.formatX || short;
    this.timeX = options.timeX || false;
    this.labelX = options.labelX || '';
    this.logY = options.logY || false;
    this.zero = options.zero || false; // whether the axis begins at 0
    this.curves = [];
    this.marks = [];
    this.hover = null;
    this.due = true;
    this.canvas = element('canvas', { tabIndex: 0, title: '' });
    this.canvas.setAttribute('role', 'img');
    this.canvas.setAttribute('aria-label', title);
    this.readout = element('div', { className: 'readout' });
    const log = element('input', { type: 'checkbox', checked: this.logY });
    log.addEventListener('change', () => {
      this.logY = log.checked;
      if (options.onLog) options.onLog(log.checked);
      this.draw();
    });
    this.figure = element(
      'figure', { className: 'plot' },
      element('figcaption', {}, element('span', { textContent: title }),
        element('label', { className: 'log' }, log, 'log')),
      element('div', { className: 'canvas' }, this.canvas, this.readout),
    );
    group.plots.push(this);
    this.listen();
  }

  inSight() {
    const box = this.canvas.getBoundingClientRect();
    return box.bottom > -50 && box.top < window.innerHeight + 50;
  }

  /** The canvas in pixels of the screen, and the area of the curves in it. */
  begin() {
    const ratio = window.devicePixelRatio || 1;
    const width = this.canvas.clientWidth;
    const height = this.canvas.clientHeight;
    if (this.canvas.width !== Math.round(width * ratio)) this.canvas.width = Math.round(width * ratio);
    if (this.canvas.height !== Math.round(height * ratio)) this.canvas.height = Math.round(height * ratio);
    const pen = this.canvas.getContext('2d');
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = `11px ${getComputedStyle(document.body).fontFamily}`;
    this.area = {
      x: MARGIN.left, y: MARGIN.top,
      width: Math.max(width - MARGIN.left - MARGIN.right, 10),
      height: Math.max(height - MARGIN.top - MARGIN.bottom, 10),
    };
    return pen;
  }

  draw() {
    this.due = false;
    const pen = this.begin();
    this.x = this.group.scale();
    this.shown = this.curves.map((curve) => columnsOf(curve, this.x, this.area.width));
    this.y = this.fitted();
    drawAxes(pen, this);
    pen.save();
    pen.beginPath();
    pen.rect(this.area.x, this.area.y, this.area.width, this.area.height);
    pen.clip();
    this.curves.forEach((curve, i) => drawCurve(pen, this, curve, this.shown[i]));
    for (const mark of this.marks) drawMark(pen, this, mark);
    if (this.hover) drawHover(pen, this);
    pen.restore();
    if (this.selection) drawSelection(pen, this);
  }

  left(x) {
    return this.area.x + this.x.place(x) * this.area.width;
  }

  top(y) {
    return this.area.y + (1 - this.y.place(y)) * this.area.height;
  }

  /** The scale of y that what is shown fits in. */
  fitted() {
    let low = Infinity;
    let high = -Infinity;
    for (const columns of this.shown) {
      for (const column of columns) {
        if (!this.logY || column.low > 0) low = Math.min(low, column.low);
        high = Math.max(high, column.high);
      }
    }
    if (!(high >= low)) [low, high] = this.logY ? [1, 10] : [0, 1];
    if (this.logY) {
      const room = Math.max(Math.pow(high / low, 0.04), 1.01);
      return new Scale(low / room, high * room, true);
    }
    if (this.zero) low = Math.min(low, 0);
    const room = (high - low) * 0.04 || Math.abs(high) * 0.05 || 1;
    return new Scale(this.zero && low === 0 ? 0 : low - room, high + room, false);
  }

  listen() {
    const place = (event) => {
      const box = this.canvas.getBoundingClientRect();
      return (event.clientX - box.left - this.area.x) / this.area.width;
    };
    let drag = null;
    this.canvas.addEventListener('pointerdown', (event) => {
      if (event.button !== 0) return;
      this.canvas.setPointerCapture(event.pointerId);
      drag = { from: place(event), last: place(event), pans: event.shiftKey };
    });
    this.canvas.addEventListener('pointermove', (event) => {
      const at = place(event);
      if (drag && drag.pans) {
        this.group.show(drag.last - at, 1 + drag.last - at);
        drag.last = at;
      } else if (drag) {
        this.selection = [Math.max(0, Math.min(drag.from, at)), Math.min(1, Math.max(drag.from, at))];
        this.later();
      } else {
        this.pointAt(at, event);
      }
    });
    const end = () => {
      const selection = this.selection;
      drag = null;
      this.selection = null;
      if (selection && (selection[1] - selection[0]) * this.area.width > 4) this.group.show(...selection);
      else if (selection) this.later();
    };
    this.canvas.addEventListener('pointerup', end);
    this.canvas.addEventListener('pointercancel', () => { drag = this.selection = null; this.later(); });
    this.canvas.addEventListener('pointerleave', () => this.point(null));
    this.canvas.addEventListener('dblclick', () => this.group.reset());
    this.canvas.addEventListener('wheel', (event) => this.wheel(event, place(event)), { passive: false });
    this.canvas.addEventListener('keydown', (event) => this.key(event));
  }

  later() {
    this.due = true;
    drawDue();
  }

  /** With Ctrl (or a pinch) a wheel zooms; sideways it pans; else the page scrolls. */
  wheel(event, at) {
    if (event.ctrlKey || event.metaKey) {
      const factor = Math.exp(Math.sign(event.deltaY) * Math.min(Math.abs(event.deltaY), 100) * 0.004);
      this.group.show(at - at * factor, at + (1 - at) * factor);
    } else if (Math.abs(event.deltaX) > Math.abs(event.deltaY) || event.shiftKey) {
      const by = (event.deltaX || event.deltaY) / this.area.width;
      this.group.show(by, 1 + by);
    } else {
      return;
    }
    event.preventDefault();
  }

  key(event) {
    const moves = {
      ArrowLeft: [-0.1, 0.9], ArrowRight: [0.1, 1.1], '+': [0.15, 0.85], '=': [0.15, 0.85], '-': [-0.25, 1.25],
    };
    if (event.key in moves) this.group.show(...moves[event.key]);
    else if (event.key === '0' || event.key === 'Escape') this.group.reset();
    else return;
    event.preventDefault();
  }

  /** What the curves are at a place of x: said beside the pointer. */
  pointAt(place, event) {
    if (place < 0 || place > 1 || !this.x) return this.point(null);
    const at = this.x.value(place);
    const found = [];
    for (const curve of this.curves) {
      if (curve.faint) continue;
      const i = nearest(curve, at);
      if (i !== null) found.push({ curve, i });
    }
    if (found.length) {
      // of the point that is nearest: curves may have points at different places
      const near = found.reduce((a, b) => (gap(a, at) <= gap(b, at) ? a : b));
      const lines = found.slice(0, 12).map(({ curve, i }) => element(
        'div', {}, element('i', { style: `background:${curve.colour}` }),
        `${curve.name}: ${this.format(curve.y[i])}${extremes(curve, i, this.format)}`));
      if (found.length > 12) lines.push(element('div', {}, `and ${found.length - 12} more`));
      const x = `${this.labelX} ${this.formatX(near.curve.x[near.i])}`;
      this.readout.replaceChildren(element('div', { textContent: x }), ...lines);
      const right = event.offsetX > this.canvas.clientWidth / 2;
      this.readout.style.left = right ? 'auto' : `${event.offsetX + 14}px`;
      this.readout.style.right = right ? `${this.canvas.clientWidth - event.offsetX + 14}px` : 'auto';
    }
    return this.point(found.length ? { found } : null);
  }

  /** Show these points and the readout; null: neither. */
  point(hover) {
    this.hover = hover;
    this.readout.hidden = hover === null;
    this.later();
  }
}

function gap({ curve, i }, x) {
  return Math.abs(curve.x[i] - x);
}

/** The index of the point of a curve nearest to x that has a value; null if it is far from x. */
function nearest(curve, x) {
  const { x: xs, y } = curve;
  const after = firstAtLeast(xs, x);
  if (xs.length === 0 || (after === xs.length && x > xs[xs.length - 1] * 1.02 + 1e-9)) return null;
  let best = null;
  for (let i = Math.max(0, after - 3); i < Math.min(xs.length, after + 3); i++) {
    if (Number.isFinite(y[i]) && (best === null || Math.abs(xs[i] - x) < Math.abs(xs[best] - x))) best = i;
  }
  return best;
}

function extremes(curve, i, format) {
  return curve.low && curve.high[i] > curve.low[i]
    ? ` (${format(curve.low[i])} to ${format(curve.high[i])})` : '';
}
