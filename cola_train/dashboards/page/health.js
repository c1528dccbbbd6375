// Health of every bottleneck: heat maps of layers over time.

const FIGURES = {
  z_rank: 'effective rank of z',
  s_rank: 'effective rank of σ(z)',
  dead: 'dead directions',
  saturated: 'saturated directions',
  norm_a: 'spectral norm of A',
  norm_b: 'spectral norm of B',
  norm_ba: 'spectral norm of BA',
  frobenius_a: 'Frobenius norm of A',
  frobenius_b: 'Frobenius norm of B',
  frobenius_ba: 'Frobenius norm of BA',
  condition: 'condition of BA',
  update_a: 'update of A over its norm',
  update_b: 'update of B over its norm',
  grad_norm: 'gradient norm',
  max_logit: 'greatest attention logit',
  residual_rms: 'rms of the residual stream',
};
const SHARES = ['dead', 'saturated'];

function healthSection() {
  const all = runs().filter((run) => run.health);
  if (!all.length) return null;
  const run = chosenRun(all, CHOSEN.health.run);
  const names = Object.keys(run.health.figures);
  const figure = names.includes(CHOSEN.health.figure) ? CHOSEN.health.figure : names[0];
  const titles = Object.fromEntries(names.map((name) => [name, FIGURES[name] || name.replaceAll('_', ' ')]));
  const section = element('section', { id: 'health' });
  const change = (what) => {
    Object.assign(CHOSEN.health, what);
    keepChoices();
    section.replaceWith(healthSection());
  };
  const chosen = element('div', { className: 'controls' },
    runChoice(all, run, (folder) => change({ run: folder })),
    choice('figure', titles, figure, (name) => change({ figure: name })));
  section.append(element('h2', { textContent: 'Health by layer' }), chosen, ...warnings(run),
    ...healthMaps(run, figure));
  return section;
}

/** What the run has warned of, the newest last. */
function warnings(run) {
  const lines = run.health.warnings.map((text) => element('li', { textContent: text }));
  return lines.length ? [element('ul', { className: 'warnings' }, ...lines)] : [];
}

/** Maps of one figure, a projection each, in one scale of colours. */
function healthMaps(run, figure) {
  const { layers, columns, size, axes } = run.health;
  const format = SHARES.includes(figure) ? percent : (value) => short(value, 3);
  const maps = Object.entries(run.health.figures[figure]).map(([name, packed]) => [name, unpack(packed)]);
  const scale = heatScale(maps.map(([, map]) => map), SHARES.includes(figure) ? [0, 1] : null);
  const steps = unpack(axes.step);
  const ends = [`step ${short(steps[0])}`, short(steps[columns - 1])];
  const drawn = maps.map(([name, map]) => heatMap(
    name === 'block' ? 'whole block' : name, map, layers, columns, scale, ends,
    (layer, column) => `layer ${layer}, step ${short(steps[column])}: ${format(map[layer * columns + column])}`));
  const several = size > 1 ? ` A column is the mean of ${size} lines.` : '';
  return [heatLegend(scale, format), element('div', { className: 'maps' }, ...drawn),
    element('p', { className: 'note', textContent: `Layer 0 is at the top.${several} Blank: not known.` })];
}
