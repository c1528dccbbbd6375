// What the reader has chosen: kept when the data is new, and over a reload of a page in a file.

const DATA = { now: JSON.parse(document.getElementById('data').textContent) };

const CHOSEN = {
  axis: 'tokens', logX: false, smoothing: 0.9, hidden: [], logY: {}, range: null,
  health: { run: null, figure: 'z_rank' }, spectra: { run: null, point: 'input' },
};
const KEPT = `cola-dashboard ${location.pathname}`;

try {
  Object.assign(CHOSEN, JSON.parse(sessionStorage.getItem(KEPT) || '{}'));
} catch {
  // no storage for this page: everything is as at first
}

function keepChoices() {
  try {
    sessionStorage.setItem(KEPT, JSON.stringify(CHOSEN));
  } catch {
    // as above
  }
}

/** Runs with their colours. */
function runs() {
  return DATA.now.runs.map((run, i) => ({ ...run, colour: theme(`run-${i % 8}`) }));
}

function shownRuns() {
  return runs().filter((run) => !CHOSEN.hidden.includes(run.folder));
}

/** The run of those that have something to show which is chosen; the first if none is. */
function chosenRun(all, folder) {
  return all.find((run) => run.folder === folder) || all[0];
}

/** A choice of one of several runs; null where there is no choice. */
function runChoice(all, chosen, onChoose) {
  if (all.length < 2) return null;
  return choice('run', Object.fromEntries(all.map((run) => [run.folder, run.name])), chosen.folder, onChoose);
}
