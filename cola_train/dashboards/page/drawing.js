// What is on a plot's canvas: axes, curves by pixel columns, marks.

/**
 * What a curve is in each pixel column of what is shown: {x, mean, low, high}. However many points
 * there are, a plot draws as many columns as it is wide, and no extreme is lost.
 */
function columnsOf(curve, scale, width) {
  const { x, y } = curve;
  const low = curve.low || y;
  const high = curve.high || y;
  const start = Math.max(0, firstAtLeast(x, scale.low) - 1);
  const end = Math.min(x.length, firstAtLeast(x, scale.high) + 1);
  const found = [];
  let column = null;
  let pixel = null;
  for (let i = start; i < end; i++) {
    if (!Number.isFinite(y[i]) || (scale.log && x[i] <= 0)) continue;
    const at = Math.round(scale.place(x[i]) * width);
    if (at === pixel) {
      column.points += 1;
      column.mean += (y[i] - column.mean) / column.points;
      column.low = Math.min(column.low, low[i]);
      column.high = Math.max(column.high, high[i]);
    } else {
      pixel = at;
      column = { x: x[i], points: 1, mean: y[i], low: low[i], high: high[i] };
      found.push(column);
    }
  }
  return found;
}

function drawAxes(pen, plot) {
  const { x: left, y: top, width, height } = plot.area;
  const yTicks = plot.y.ticks(Math.max(2, Math.floor(height / 36)));
  const count = Math.max(3, Math.floor(width / 75));
  const linear = plot.timeX && !plot.x.log;
  const xTicks = linear ? timeTicks(plot.x.low, plot.x.high, count) : plot.x.ticks(count);
  pen.lineWidth = 1;
  pen.strokeStyle = theme('grid');
  pen.fillStyle = theme('soft');
  pen.beginPath();
  pen.textAlign = 'right';
  pen.textBaseline = 'middle';
  for (const tick of yTicks) {
    const at = Math.round(plot.top(tick)) + 0.5;
    pen.moveTo(left, at);
    pen.lineTo(left + width, at);
    pen.fillText(plot.format === short ? tickLabel(tick, yTicks) : plot.format(tick), left - 6, at);
  }
  pen.textBaseline = 'top';
  for (const tick of xTicks) {
    const at = Math.round(plot.left(tick)) + 0.5;
    pen.moveTo(at, top);
    pen.lineTo(at, top + height);
    const text = plot.timeX ? timeLabel(tick, xTicks) : tickLabel(tick, xTicks);
    const half = pen.measureText(text).width / 2;
    pen.textAlign = 'center';
    pen.fillText(text, Math.min(at, plot.canvas.clientWidth - half - 1), top + height + 6);
  }
  pen.stroke();
}

/** A line of means; of a curve with a band, behind it from the least to the greatest value. */
function drawCurve(pen, plot, curve, columns) {
  const usable = plot.logY ? columns.filter((column) => column.low > 0) : columns;
  pen.strokeStyle = pen.fillStyle = curve.colour;
  if (curve.band) drawBand(pen, plot, usable, curve.low ? Infinity : 1);
  if (curve.faint) return;
  pen.lineWidth = curve.dots ? 1 : 1.6;
  pen.lineJoin = 'bevel';
  pen.beginPath();
  for (const column of usable) pen.lineTo(plot.left(column.x), plot.top(column.mean));
  pen.stroke();
  if (curve.dots || usable.length === 1) {
    for (const column of usable) dot(pen, plot.left(column.x), plot.top(column.mean), 3);
  }
}

/**
 * Rectangles of whole pixels, at most as wide as `widest`, and lines where they leave gaps: one
 * polygon with as many corners takes the rasteriser longer.
 */
function drawBand(pen, plot, columns, widest) {
  pen.globalAlpha = 0.3;
  pen.lineWidth = 1;
  pen.beginPath();
  let place = columns.length && Math.round(plot.left(columns[0].x));
  columns.forEach((column, i) => {
    const next = i + 1 < columns.length ? Math.round(plot.left(columns[i + 1].x)) : place + 1;
    const top = Math.floor(plot.top(column.high));
    if (column.high > column.low) {
      const width = Math.max(Math.min(next - place, widest), 1);
      pen.fillRect(place, top, width, Math.max(Math.ceil(plot.top(column.low)) - top, 1));
    }
    if (next - place > widest || column.high === column.low) {
      pen.moveTo(place, plot.top(column.mean));
      const after = columns[i + 1] || column;
      pen.lineTo(next, plot.top(after.mean));
    }
    place = next;
  });
  pen.stroke();
  pen.globalAlpha = 1;
}

function dot(pen, x, y, radius) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fill();
}

/** A start of the run is a dashed line, a skipped step a triangle at the top. */
function drawMark(pen, plot, mark) {
  if (plot.x.log && mark.x <= 0) return;
  const at = plot.left(mark.x);
  const { y: top, height } = plot.area;
  pen.strokeStyle = pen.fillStyle = mark.colour;
  pen.lineWidth = 1;
  pen.beginPath();
  if (mark.symbol === 'start') {
    pen.setLineDash([3, 3]);
    pen.moveTo(at, top);
    pen.lineTo(at, top + height);
    pen.stroke();
    pen.setLineDash([]);
  } else {
    pen.moveTo(at - 4, top);
    pen.lineTo(at + 4, top);
    pen.lineTo(at, top + 7);
    pen.fill();
  }
}

function drawHover(pen, plot) {
  for (const { curve, i } of plot.hover.found) {
    if (plot.logY && curve.y[i] <= 0) continue;
    pen.fillStyle = curve.colour;
    dot(pen, plot.left(curve.x[i]), plot.top(curve.y[i]), 3.5);
  }
}

function drawSelection(pen, plot) {
  const [from, to] = plot.selection;
  pen.fillStyle = theme('select');
  pen.fillRect(plot.area.x + from * plot.area.width, plot.area.y, (to - from) * plot.area.width, plot.area.height);
}
