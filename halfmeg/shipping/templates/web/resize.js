// The centre square of an image, scaled as for training: bicubic over all pixels that a new pixel
// covers, in fixed point, columns first and then rows. Gives the bytes that Pillow gives.
const FRACTION_BITS = 22;

function bicubic(distance) {
  const x = Math.abs(distance);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? -0.5 * (((x - 5) * x + 8) * x - 4) : 0;
}

// For each of `size` new pixels: the first old pixel that counts, and the weights from there on.
function weightsOf(side, start, end, size) {
  // The ends are single floats there, and so is their difference.
  const from = Math.fround(start), to = Math.fround(end);
  const scale = Math.fround(to - from) / size;
  const filterScale = Math.max(scale, 1);
  const support = 2 * filterScale;
  return Array.from({ length: size }, (_, place) => {
    const centre = from + (place + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - support + 0.5), 0);
    const last = Math.min(Math.trunc(centre + support + 0.5), side);
    const shares = [];
    let total = 0;
    for (let i = 0; i < last - first; i++) {
      shares.push(bicubic((i + first - centre + 0.5) * (1 / filterScale)));
      total += shares[i];
    }
    const weights = Int32Array.from(shares, (share) => {
      const scaled = (share / total) * (1 << FRACTION_BITS);
      return Math.trunc(scaled + (scaled < 0 ? -0.5 : 0.5));
    });
    return { first, weights };
  });
}

function toByte(sum) {
  return Math.min(Math.max(sum >> FRACTION_BITS, 0), 255);
}

// Lays pixels RGBA on white, in place.
function layOnWhite(pixels) {
  for (let i = 0; i < pixels.length; i += 4) {
    const alpha = pixels[i + 3];
    if (alpha === 255) continue;
    for (let channel = i; channel < i + 3; channel++) {
      const sum = pixels[channel] * alpha + 255 * (255 - alpha) + 128;
      pixels[channel] = ((sum >> 8) + sum) >> 8;
    }
  }
}

// Returns size × size × RGB. `readRows(top, count)` returns rows of the image as RGBA, which may be
// written to; it is asked for a few rows at a time, so that large photographs take little memory.
function resize(width, height, readRows, size) {
  const side = Math.min(width, height);
  const left = (width - side) * 0.5, above = (height - side) * 0.5;
  const columns = weightsOf(width, left, left + side, size);
  const rows = weightsOf(height, above, above + side, size);
  const top = rows[0].first;
  const bottom = rows[size - 1].first + rows[size - 1].weights.length;
  const narrow = new Uint8Array((bottom - top) * size * 3);
  const half = 1 << (FRACTION_BITS - 1);
  for (let start = top; start < bottom; start += 256) {
    const count = Math.min(256, bottom - start);
    const pixels = readRows(start, count);
    layOnWhite(pixels);
    let to = (start - top) * size * 3;
    for (let y = 0; y < count; y++) {
      for (const { first, weights } of columns) {
        let red = half, green = half, blue = half;
        let from = (y * width + first) * 4;
        for (let i = 0; i < weights.length; i++, from += 4) {
          const weight = weights[i];
          red = (red + Math.imul(pixels[from], weight)) | 0;
          green = (green + Math.imul(pixels[from + 1], weight)) | 0;
          blue = (blue + Math.imul(pixels[from + 2], weight)) | 0;
        }
        narrow[to++] = toByte(red);
        narrow[to++] = toByte(green);
        narrow[to++] = toByte(blue);
      }
    }
  }
  const resized = new Uint8Array(size * size * 3);
  const line = size * 3;
  rows.forEach(({ first, weights }, y) => {
    for (let x = 0; x < line; x++) {
      let sum = half;
      for (let i = 0; i < weights.length; i++)
        sum = (sum + Math.imul(narrow[(first - top + i) * line + x], weights[i])) | 0;
      resized[y * line + x] = toByte(sum);
    }
  });
  return resized;
}
