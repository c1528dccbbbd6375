// Curves of all runs over one axis: loss, learning rate, speed, memory, and what a method adds.

const AXES = {
  tokens: ['tokens', short], flops: ['FLOPs', short], seconds: ['time', moment], step: ['step', short],
};

// title, and how its values read; smooth: whether smoothing is for it
const PLOTS = {
  loss: { title: 'loss (nats a token)', smooth: true },
  lr: { title: 'learning rate', zero: true },
  grad_norm: { title: 'gradient norm', smooth: true },
  tokens_per_second: { title: 'tokens a second', smooth: true, zero: true },
  mfu: { title: 'MFU', smooth: true, zero: true, format: percent },
  peak_memory_bytes: { title: 'peak memory of a process', zero: true, format: bytes },
  step_seconds: { title: 'time of a step', smooth: true, zero: true, format: duration },
  data_seconds: { title: 'of it, waiting for data', smooth: true, zero: true, format: duration },
  skipped: { title: 'steps skipped so far', zero: true },
};
// starts are marks; the loss says the rest
const NO_PLOT = ['attempt', 'val_tokens', 'val_perplexity', 'val_bits_per_byte'];

const TRAINING = new Group();

/** Values of the chosen axis from those of the run's lines; null where they are not known. */
function axisOf(axes, run) {
  if (CHOSEN.axis !== 'flops') return axes[CHOSEN.axis] ? values(axes[CHOSEN.axis]) : null;
  if (!axes.tokens || run.flops_per_token === null) return null;
  return values(axes.tokens).map((tokens) => tokens * run.flops_per_token);
}

/** Floats, whether they are packed or plain. */
function values(axis) {
  return Array.isArray(axis) ? Float64Array.from(axis) : unpack(axis);
}

/** The curves of one figure: of every shown run those of its training lines, and what was measured. */
function curvesOf(name, smooth) {
  const found = [];
  for (const run of shownRuns()) {
    const figure = run.training.figures[name];
    const x = axisOf(run.training.axes, run);
    if (figure && x) {
      const y = unpack(figure.mean);
      const low = figure.min && unpack(figure.min);
      const high = figure.max && unpack(figure.max);
      const share = smooth ? CHOSEN.smoothing : 0;
      const curve = { name: run.name, colour: run.colour, x, y, low, high, band: true };
      if (share > 0) {
        found.push({ ...curve, faint: true });
        const line = smoothed(y, share, run.training.size);
        found.push({ ...curve, y: line, low: null, high: null, band: false });
      } else {
        found.push(curve);
      }
    }
    const measured = run.measured[name === 'loss' ? 'val_loss' : name];
    const at = measured && axisOf(measured.axes, run);
    if (at) {
      const label = name === 'loss' ? `${run.name}, validation` : run.name;
      found.push({ name: label, colour: run.colour, x: at, y: unpack(measured.mean), dots: true });
    }
  }
  return found;
}

/** Where steps were skipped and later starts went on, in each run's colour. */
function marksOf() {
  const found = [];
  for (const run of shownRuns()) {
    for (const [event, symbol] of [['skipped', 'skip'], ['attempt', 'start']]) {
      const at = run.events[event] && axisOf(run.events[event], run);
      for (const x of at || []) found.push({ x, colour: run.colour, symbol });
    }
  }
  return found;
}

/** Names of all figures that any run has, the known ones first. */
function figureNames() {
  const found = new Set();
  for (const run of DATA.now.runs) {
    for (const name of Object.keys(run.training.figures)) found.add(name);
    for (const name of Object.keys(run.measured)) found.add(name === 'val_loss' ? 'loss' : name);
  }
  const known = Object.keys(PLOTS).filter((name) => found.has(name));
  return [...known, ...[...found].filter((name) => !(name in PLOTS) && !NO_PLOT.includes(name))];
}

function titleOf(name) {
  if (name in PLOTS) return PLOTS[name].title;
  return name.replace('val_loss/', 'validation loss, ').replace('task/', 'task ').replaceAll('_', ' ');
}

/** The section of curves, with what can be chosen for all of them. */
function curvesSection() {
  TRAINING.plots = [];
  TRAINING.log = CHOSEN.logX;
  TRAINING.range = CHOSEN.range;
  for (const name of figureNames()) {
    const own = PLOTS[name] || { smooth: true };
    const plot = new Plot(TRAINING, titleOf(name), {
      ...own, logY: CHOSEN.logY[name] || false,
      onLog: (log) => { CHOSEN.logY[name] = log; keepChoices(); },
    });
    plot.figureName = name;
  }
  fillCurves();
  return element('section', {}, element('h2', { textContent: 'Training' }), controls(),
    element('div', { className: 'plots' }, ...TRAINING.plots.map((plot) => plot.figure)), curvesNote());
}

function fillCurves() {
  const marks = marksOf();
  const [labelX, formatX] = AXES[CHOSEN.axis];
  for (const plot of TRAINING.plots) {
    const name = plot.figureName;
    plot.curves = curvesOf(name, (PLOTS[name] || { smooth: true }).smooth);
    plot.marks = name === 'loss' ? marks : [];
    plot.point(null);
    Object.assign(plot, { labelX, formatX, timeX: CHOSEN.axis === 'seconds' });
  }
}

/** Another axis, other runs or another smoothing. */
function curvesChanged() {
  keepChoices();
  fillCurves();
  TRAINING.draw();
}

function controls() {
  const named = Object.fromEntries(Object.entries(AXES).map(([axis, [label]]) => [axis, label]));
  const over = choice('over', named, CHOSEN.axis, (axis) => {
    CHOSEN.axis = axis;
    TRAINING.range = CHOSEN.range = null; // of another unit
    curvesChanged();
  });
  const log = element('input', { type: 'checkbox', checked: CHOSEN.logX });
  log.addEventListener('change', () => {
    CHOSEN.logX = TRAINING.log = log.checked;
    TRAINING.range = CHOSEN.range = null;
    curvesChanged();
  });
  // by how many lines a smoothed value looks back: 1, 2, 5, ... lines
  const smooth = element('input', { type: 'range', min: 0, max: 3, step: 0.05, value: -Math.log10(1 - CHOSEN.smoothing) });
  smooth.addEventListener('input', () => {
    CHOSEN.smoothing = 1 - Math.pow(10, -Number(smooth.value));
    curvesChanged();
  });
  const reset = element('button', { type: 'button', textContent: 'whole runs', onclick: () => TRAINING.reset() });
  return element('div', { className: 'controls' }, over,
    element('label', {}, log, ' log axis'), element('label', {}, 'smoothing ', smooth), reset,
    element('small', { textContent: 'Drag to zoom, Shift and drag to pan, Ctrl and wheel to do both, double-click to see all.' }));
}

function curvesNote() {
  const notes = ['▼ a skipped step; dashed: a later start went on here; dots: validation.'];
  const coarse = DATA.now.runs.filter((run) => run.training.size > 1);
  if (coarse.length) {
    notes.push(`Points stand for several lines, with their mean, least and greatest value: ${
      coarse.map((run) => `${run.training.size} of ${run.name}`).join(', ')}.`);
  }
  const without = DATA.now.runs.filter((run) => run.flops_per_token === null);
  if (without.length) notes.push(`Not drawn over FLOPs: ${without.map((run) => run.name).join(', ')}.`);
  notes.push('Time is that of the steps, without validations, checkpoints and stops.');
  return element('p', { className: 'note', textContent: notes.join(' ') });
}
