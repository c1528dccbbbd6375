// Spectra of activations in the form of the paper's Figure 2, and effective ranks.

const WHERE = { input: 'input', output: 'output', z: 'z', s: 'σ(z)' };
const SPECTRA = new Group();

function spectraSection() {
  const all = runs().filter((run) => run.spectra);
  if (!all.length) return null;
  const run = chosenRun(all, CHOSEN.spectra.run);
  const { linears, alpha, tokens } = run.spectra;
  const there = Object.keys(WHERE).filter((point) => linears.some((linear) => linear[point]));
  const point = there.includes(CHOSEN.spectra.point) ? CHOSEN.spectra.point : there[0];
  const section = element('section', { id: 'spectra' });
  const change = (what) => {
    Object.assign(CHOSEN.spectra, what);
    keepChoices();
    section.replaceWith(spectraSection());
    SPECTRA.draw();
  };
  const chosen = element('div', { className: 'controls' },
    runChoice(all, run, (folder) => change({ run: folder })),
    choice('of', Object.fromEntries(there.map((name) => [name, WHERE[name]])), point, (name) => change({ point: name })));
  const shown = linears.filter((linear) => linear[point]);
  const projections = [...new Set(shown.map((linear) => linear.projection))];
  SPECTRA.plots = [];
  SPECTRA.range = null;
  const plots = projections.map((name) => spectrumPlot(shown.filter((linear) => linear.projection === name), name, point));
  section.append(
    element('h2', { textContent: 'Spectra of activations' }), chosen,
    element('div', { className: 'plots' }, ...plots.map((plot) => plot.figure)),
    element('p', { className: 'note', textContent:
      'Singular values over the largest, over the share of the width. Dark: the first layer, light: the last.' }),
    element('h3', { textContent: `Effective rank of ${WHERE[point]} at ${short(alpha)}, of the width` }),
    rankTable(shown, projections, point, run.spectra.advice),
    element('p', { className: 'note', textContent: `Measured on ${short(tokens, 3)} tokens of ${run.spectra.source}.` }));
  return section;
}

/** A curve for each layer of a projection. */
function spectrumPlot(linears, projection, point) {
  const plot = new Plot(SPECTRA, projection, { logY: true, labelX: 'share of the width', formatX: percent });
  const last = Math.max(...linears.map((linear) => linear.layer), 1);
  plot.curves = linears.map((linear) => {
    const spectrum = linear[point];
    const x = Float64Array.from(unpack(spectrum.at), (at) => (at + 1) / spectrum.width);
    return { name: `layer ${linear.layer}`, colour: heatColour((linear.layer / last) * 0.92), x, y: unpack(spectrum.values) };
  });
  return plot;
}

/** Effective ranks by layer and projection; below, the rank given and the rank advised. */
function rankTable(linears, projections, point, advice) {
  const layers = [...new Set(linears.map((linear) => linear.layer))].sort((a, b) => a - b);
  const of = (layer, name) => linears.find((linear) => linear.layer === layer && linear.projection === name);
  const rows = layers.map((layer) => element('tr', {}, element('th', { scope: 'row', textContent: String(layer) }),
    ...projections.map((name) => {
      const linear = of(layer, name);
      if (!linear) return element('td', { textContent: '–' });
      const { effective_rank: rank, width } = linear[point];
      const share = Math.round((100 * rank) / width);
      return element('td', { textContent: `${rank} / ${width}`, title: `${share} %`, style: `--share:${share}%` });
    })));
  const given = projections.map((name) => linears.find((linear) => linear.projection === name).rank);
  const foot = [['rank given', given.map((rank) => (rank === null ? 'full' : String(rank)))]];
  if (advice) foot.push(['rank advised', projections.map((name) => String(advice[name] ?? '–'))]);
  const footRows = foot.map(([name, cells]) => element('tr', {}, element('th', { scope: 'row', textContent: name }),
    ...cells.map((textContent) => element('td', { textContent }))));
  const head = ['layer', ...projections].map((name) => element('th', { scope: 'col', textContent: name }));
  return element('div', { className: 'wide' }, element('table', { className: 'ranks' },
    element('thead', {}, element('tr', {}, ...head)), element('tbody', {}, ...rows), element('tfoot', {}, ...footRows)));
}
