// Numbers as a person reads them.

export const count = (n) => (isFinite(n ?? NaN) ? Math.round(n).toLocaleString("en-US") : "–");

export function digits(value, least = 3) { // at least so many digits, no more than needed
  if (!isFinite(value ?? NaN)) return "–";
  if (value === 0) return "0";
  const size = abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(1).replace("e+", "e");
  return value.toFixed(max(0, min(6, least - 1 - floor(log10(size)))));
}

export function size(bytes) {
  if (!isFinite(bytes ?? NaN)) return "–";
  const [unit, name] = [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"], [1, "bytes"]].find(([each]) => bytes >= each) ?? [1, "bytes"];
  return `${(bytes / unit).toFixed(unit === 1 || bytes >= 100 * unit ? 0 : 1)} ${name}`;
}

export function span(seconds) {
  if (!isFinite(seconds ?? NaN)) return "–";
  const [hours, minutes, rest] = [floor(seconds / 3600), floor(seconds / 60) % 60, round(seconds % 60)];
  if (hours) return `${hours} h ${minutes} min`;
  return seconds >= 60 ? `${minutes} min ${min(rest, 59)} s` : `${rest} s`;
}

// Means of neighbours, as many on both sides, so that nothing lags; NaN is passed over.
export function smoothed(values, reach = max(2, floor(values.length / 40))) {
  return Array.from(values, (_, i) => {
    const side = min(reach, i, values.length - 1 - i);
    const near = [...values.slice(i - side, i + side + 1)].filter(isFinite);
    return near.length ? near.reduce((a, b) => a + b) / near.length : NaN;
  });
}

// Round numbers from low to high, at most so many.
export function ticks(low, high, most) {
  const rough = (high - low) / most || 1;
  const power = 10 ** floor(log10(rough));
  const step = power * [1, 2, 5, 10].find((each) => each * power >= rough - 1e-12);
  const found = [];
  for (let at = ceil(low / step - 1e-9); at * step <= high + 1e-9 * step; at++) found.push(at * step + 0);
  return found;
}
