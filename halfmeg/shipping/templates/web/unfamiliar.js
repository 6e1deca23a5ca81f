// How unlike an image is those of training: bytes, height × width × channels, with their logits.
// The same as Familiarity.scores; sums are exact, as colours are mixed in thousandths.
function unfamiliarity(pixels, logits, { channels, height, width }, known) {
  const full = 255 * 1000, count = height * width;
  const means = [], spreads = [], across = [], down = [];
  const contrast = (value) => Math.log(value / full + known.floor);
  for (const by of known.planes) {
    const plane = new Int32Array(count);
    for (let i = 0; i < count; i++)
      for (let c = 0; c < 3; c++) plane[i] += by[c] * pixels[channels * i + (c % channels)];
    let sum = 0, squares = 0, right = 0, below = 0;
    plane.forEach((value, i) => {
      sum += value;
      squares += value * value;
      if ((i + 1) % width) right += Math.abs(plane[i + 1] - value);
      if (i + width < count) below += Math.abs(plane[i + width] - value);
    });
    const mean = sum / count;
    means.push(mean / full);
    spreads.push(contrast(Math.sqrt(Math.max(0, squares / count - mean * mean))));
    across.push(contrast(right / (height * (width - 1))));
    down.push(contrast(below / ((height - 1) * width)));
  }
  const away = [...means, ...spreads, ...across, ...down].map((value, i) => value - known.centre[i]);
  const size = away.length;
  let squared = 0;
  for (let i = 0; i < size; i++)
    for (let j = 0; j < size; j++) squared += away[i] * known.precision[size * i + j] * away[j];
  const largest = Math.max(...logits);
  const total = logits.reduce((all, logit) => all + Math.exp(logit - largest), 0);
  const energy = -largest - Math.log(total);
  return (energy - known.energy_mean) / known.energy_std +
    (Math.log(Math.max(squared, 1e-6)) - known.distance_mean) / known.distance_std;
}
