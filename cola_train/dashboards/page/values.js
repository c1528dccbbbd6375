// Numbers as the page gets them, and as people read them.

const UNPACKED = new WeakMap();

/** Floats of {f4: base64} or {f8: base64}; the page's maker writes them little-endian. */
function unpack(packed) {
  if (UNPACKED.has(packed)) return UNPACKED.get(packed);
  const [kind, text] = Object.entries(packed)[0];
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  const floats = kind === 'f8' ? new Float64Array(bytes.buffer) : new Float32Array(bytes.buffer);
  UNPACKED.set(packed, floats);
  return floats;
}

/** The first index of ascending values that is at least x. */
function firstAtLeast(values, x) {
  let low = 0;
  let high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < x) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** An exponential moving average without the pull of its start; lines: how many each value is of. */
function smoothed(values, share, lines) {
  if (share <= 0) return values;
  const keep = Math.pow(share, lines);
  const found = new Float32Array(values.length);
  let sum = 0;
  let weight = 0;
  for (let i = 0; i < values.length; i++) {
    if (Number.isFinite(values[i])) {
      sum = keep * sum + (1 - keep) * values[i];
      weight = keep * weight + (1 - keep);
    }
    found[i] = weight > 0 && Number.isFinite(values[i]) ? sum / weight : NaN;
  }
  return found;
}

const SUFFIXES = [[1e12, 'T'], [1e9, 'B'], [1e6, 'M'], [1e3, 'k']];

/** A number for people, with three or four digits. */
function short(value, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return '–';
  const size = Math.abs(value);
  if (size === 0) return '0';
  if (size >= 1e15 || size < 1e-3) {
    return value.toExponential(digits - 2).replace(/\.?0+e/, 'e').replace('e+', 'e');
  }
  for (const [unit, suffix] of SUFFIXES) {
    if (size >= unit) return trimmed((value / unit).toPrecision(Math.max(digits - 1, 3))) + suffix;
  }
  return trimmed(value.toPrecision(digits));
}

/** Without zeros at the end of its decimals, and never with an exponent. */
function trimmed(text) {
  if (text.includes('e')) return String(Number(text));
  return text.includes('.') ? text.replace(/\.?0+$/, '') : text;
}

function percent(value) {
  return value === null || Number.isNaN(value) ? '–' : `${trimmed((100 * value).toPrecision(3))} %`;
}

function bytes(value) {
  return value === null || Number.isNaN(value) ? '–' : `${trimmed((value / 1e9).toPrecision(3))} GB`;
}

function duration(seconds) {
  if (seconds === null || Number.isNaN(seconds)) return '–';
  const minutes = Math.round(seconds / 60);
  if (seconds > 0 && seconds < 1) return `${trimmed((1000 * seconds).toPrecision(3))} ms`;
  if (seconds < 60) return `${trimmed(seconds.toPrecision(3))} s`;
  if (minutes < 60) return `${minutes} min`;
  if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return `${Math.floor(minutes / 1440)} d ${Math.floor((minutes % 1440) / 60)} h`;
}

/** A moment of a run: as a duration, to the second within the first hour. */
function moment(seconds) {
  if (!(seconds >= 60 && seconds < 3600)) return duration(seconds);
  return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
}

/** An element: its text, class and other attributes by name, and children. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) made.addEventListener(name.slice(2), value);
    else if (name in made && name !== 'list') made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** A choice of one of several, as {value: label}. */
function choice(label, options, chosen, onChoose) {
  const box = element('select', { onchange: () => onChoose(box.value) });
  for (const [value, text] of Object.entries(options)) {
    box.append(element('option', { value, textContent: text, selected: value === chosen }));
  }
  return element('label', {}, `${label} `, box);
}

/** A colour of the theme, as the style sheet has it now. */
function theme(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}
