// The table of runs: where each is, and its last figures. It is the legend too.

const COLUMNS = {
  'left': (run) => duration(run.outlook.seconds_left),
  'loss': (run) => short(run.summary.loss),
  'best validation': (run) => short(run.summary.best_val_loss),
  'tokens': (run) => short(run.summary.tokens, 3),
  'tokens/s': (run) => short(run.summary.tokens_per_second, 3),
  'MFU': (run) => percent(run.summary.mfu),
  'memory': (run) => bytes(run.summary.peak_memory_bytes),
  'trained for': (run) => duration(run.summary.seconds),
  'skipped': (run) => short(run.summary.skipped),
  'restarts': (run) => (run.outlook.starts ? String(run.outlook.starts - 1) : '–'),
  'parameters': (run) => short(run.parameters, 3),
};

function runTable() {
  const head = element('tr', {}, ...['run', 'state', 'step', ...Object.keys(COLUMNS)].map(
    (name) => element('th', { scope: 'col', textContent: name })));
  const body = element('tbody', {}, ...runs().map(runRow));
  return element('div', { className: 'wide' }, element('table', { className: 'runs' },
    element('thead', {}, head), body));
}

function runRow(run) {
  const shown = element('input', { type: 'checkbox', checked: !CHOSEN.hidden.includes(run.folder) });
  shown.addEventListener('change', () => {
    CHOSEN.hidden = CHOSEN.hidden.filter((folder) => folder !== run.folder);
    if (!shown.checked) CHOSEN.hidden.push(run.folder);
    curvesChanged();
  });
  const swatch = element('i', { className: 'swatch', style: `background:${run.colour}` });
  const cells = Object.entries(COLUMNS).map(([name, text]) => {
    const cell = element('td', { textContent: text(run) });
    cell.dataset.label = name;
    return cell;
  });
  return element('tr', {},
    element('th', { scope: 'row', title: run.folder },
      element('label', {}, shown, swatch, run.name)),
    stateCell(run), stepCell(run.outlook), ...cells);
}

function stateCell(run) {
  const { state, why } = run.outlook;
  const notes = [why, ...run.problems].filter((note) => note);
  const cell = element('td', { className: 'state' },
    element('span', { className: `pill ${state}`, textContent: state }),
    ...notes.map((note) => element('small', { textContent: note })));
  cell.dataset.label = 'state';
  return cell;
}

function stepCell(outlook) {
  const { step, last_step: last } = outlook;
  const cell = element('td', {},
    last === null ? step.toLocaleString('en') : `${step.toLocaleString('en')} / ${last.toLocaleString('en')}`,
    last === null ? null : element('progress', { max: Math.max(last, 1), value: step, ariaLabel: 'steps' }));
  cell.dataset.label = 'step';
  return cell;
}
