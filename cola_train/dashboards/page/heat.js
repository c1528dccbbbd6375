// A heat map on a canvas: a row for each layer, a column for each moment.

// viridis (matplotlib, CC0) at nine places: light is much, in print and for the colour-blind too
const VIRIDIS = [
  [68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129],
  [92, 200, 99], [170, 220, 50], [253, 231, 37],
];

/** [red, green, blue] of a place from 0 to 1. */
function heat(place) {
  const at = Math.min(Math.max(place, 0), 1) * (VIRIDIS.length - 1);
  const i = Math.min(Math.floor(at), VIRIDIS.length - 2);
  return VIRIDIS[i].map((from, c) => Math.round(from + (at - i) * (VIRIDIS[i + 1][c] - from)));
}

function heatColour(place) {
  return `rgb(${heat(place).join(',')})`;
}

/** The scale of colours of several maps; fixed: [low, high] where that is known. */
function heatScale(maps, fixed) {
  let low = Infinity;
  let high = -Infinity;
  for (const values of maps) {
    for (const value of values) {
      if (!Number.isFinite(value)) continue;
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
  }
  if (!(high >= low)) [low, high] = [0, 1];
  if (fixed) [low, high] = fixed;
  const log = low > 0 && high / low > 100;
  return new Scale(low, high > low ? high : low + (Math.abs(low) || 1), log);
}

/** values: layer by layer, `columns` each; says(layer, column): what stands beside the pointer. */
function heatMap(title, values, layers, columns, scale, ends, says) {
  const canvas = element('canvas', { width: columns, height: layers, className: 'heat' });
  canvas.setAttribute('role', 'img');
  canvas.setAttribute('aria-label', title);
  const pen = canvas.getContext('2d');
  const image = pen.createImageData(columns, layers);
  for (let i = 0; i < layers * columns; i++) {
    if (!Number.isFinite(values[i])) continue; // stays transparent
    image.data.set([...heat(scale.place(values[i])), 255], 4 * i);
  }
  pen.putImageData(image, 0, 0);
  const readout = element('div', { className: 'readout', hidden: true });
  canvas.addEventListener('pointermove', (event) => {
    const layer = Math.floor((event.offsetY / canvas.clientHeight) * layers);
    const column = Math.floor((event.offsetX / canvas.clientWidth) * columns);
    if (layer < 0 || layer >= layers || column < 0 || column >= columns) return;
    readout.textContent = says(layer, column);
    const right = event.offsetX > canvas.clientWidth / 2;
    readout.style.left = right ? 'auto' : `${event.offsetX + 40}px`;
    readout.style.right = right ? `${canvas.clientWidth - event.offsetX + 14}px` : 'auto';
    readout.hidden = false;
  });
  canvas.addEventListener('pointerleave', () => { readout.hidden = true; });
  canvas.style.height = `${Math.min(Math.max(layers * 12, 60), 200)}px`;
  return element(
    'figure', { className: 'map' },
    element('figcaption', { textContent: title }),
    element('div', { className: 'canvas' },
      element('div', { className: 'layers' },
        element('span', { textContent: '0' }), element('span', { textContent: String(layers - 1) })),
      canvas, readout),
    element('div', { className: 'ends' },
      element('span', { textContent: ends[0] }), element('span', { textContent: ends[1] })),
  );
}

/** What the colours mean. */
function heatLegend(scale, format) {
  const stops = [0, 0.25, 0.5, 0.75, 1];
  const bar = element('div', { className: 'bar' });
  bar.style.background = `linear-gradient(to right, ${stops.map(heatColour).join(',')})`;
  const labels = stops.map((stop) => element('span', { textContent: format(scale.value(stop)) }));
  return element('div', { className: 'legend' }, bar, element('div', { className: 'ends' }, ...labels));
}
