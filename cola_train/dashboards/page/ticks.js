// Scales of an axis, and where its ticks stand.

/** Positions 0..1 of values between low and high; logarithmic where asked. */
class Scale {
  constructor(low, high, log) {
    this.log = log;
    this.low = low;
    this.high = high;
    this.from = this.bent(low);
    this.span = this.bent(high) - this.from || 1;
  }

  bent(value) {
    return this.log ? Math.log10(value) : value;
  }

  place(value) {
    return (this.bent(value) - this.from) / this.span;
  }

  value(place) {
    const bent = this.from + place * this.span;
    return this.log ? Math.pow(10, bent) : bent;
  }

  /** About `count` round values. */
  ticks(count) {
    if (!this.log) return evenTicks(this.low, this.high, count);
    const decades = Math.log10(this.high / this.low);
    if (decades < 1.5) return evenTicks(this.low, this.high, count);
    const every = Math.max(1, Math.ceil(decades / count));
    const found = [];
    for (let e = Math.floor(this.from); e <= Math.ceil(this.from + this.span); e += every) {
      for (const digit of decades < 3 ? [1, 2, 5] : [1]) found.push(digit * Math.pow(10, e));
    }
    return found.filter((tick) => tick >= this.low && tick <= this.high);
  }
}

function evenTicks(low, high, count) {
  const raw = (high - low) / Math.max(count, 1);
  const unit = Math.pow(10, Math.floor(Math.log10(raw)));
  const step = unit * [1, 2, 5, 10].find((digit) => digit * unit >= raw * 0.65);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) {
    found.push(i === 0 ? 0 : Number((i * step).toPrecision(12)));
  }
  return found;
}

const [MINUTE, HOUR, DAY] = [60, 3600, 86400];
const TIMES = [
  1, 2, 5, 10, 15, 30, ...[1, 2, 5, 10, 15, 30].map((n) => n * MINUTE),
  ...[1, 2, 3, 6, 12].map((n) => n * HOUR), ...[1, 2, 5, 10, 20, 50, 100].map((n) => n * DAY),
];

/** Ticks at round numbers of seconds, minutes, hours or days. */
function timeTicks(low, high, count) {
  const raw = ((high - low) / count) * 0.65;
  const step = TIMES.find((each) => each >= raw);
  if (raw < 0.5 || step === undefined) return evenTicks(low, high, count);
  return evenTicks(low / step, high / step, count).filter(Number.isInteger).map((n) => n * step);
}

/** A tick's label in time, which tells it from the next one. */
function timeLabel(seconds, ticks) {
  const gap = ticks.length > 1 ? ticks[1] - ticks[0] : seconds;
  const two = (number) => String(Math.floor(number)).padStart(2, '0');
  if (gap < 1) return `${tickLabel(seconds, ticks)} s`;
  if (gap >= DAY) return `${short(seconds / DAY)} d`;
  if (gap >= HOUR) return `${short(seconds / HOUR)} h`;
  if (gap < MINUTE && seconds < HOUR) return `${Math.floor(seconds / MINUTE)}:${two(seconds % MINUTE)} min`;
  if (seconds < HOUR) return `${short(seconds / MINUTE)} min`;
  const clock = `${Math.floor(seconds / HOUR)}:${two((seconds % HOUR) / MINUTE)}`;
  return gap < MINUTE ? `${clock}:${two(seconds % MINUTE)} h` : `${clock} h`;
}

/** A tick's label, with as many digits as tell neighbours apart. */
function tickLabel(value, ticks) {
  const gap = ticks.length > 1 ? Math.abs(ticks[1] - ticks[0]) : Math.abs(value) || 1;
  const digits = Math.ceil(Math.log10((Math.abs(value) || gap) / gap) + 1e-9) + 1;
  return short(value, Math.min(Math.max(digits, 4), 9));
}
