// An image scaled as for training: bicubic over all pixels that a new pixel covers, in fixed point,
// columns first and then rows. Gives the bytes that Pillow gives.
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

// Turns pixels RGBA gray, in place: luma, in Pillow's fixed point.
function turnGray(pixels) {
  for (let i = 0; i < pixels.length; i += 4) {
    const sum = 19595 * pixels[i] + 38470 * pixels[i + 1] + 7471 * pixels[i + 2] + 0x8000;
    pixels[i] = pixels[i + 1] = pixels[i + 2] = sum >> 16;
  }
}

// Rounds halves to even numbers, as Python does.
function roundEven(x) {
  const below = Math.floor(x);
  return x - below === 0.5 ? below + (below % 2) : Math.round(x);
}

// Where an image goes: the part of it that is scaled, to which size, and where that then lies.
// "crop" takes the centre, "pad" scales all of it to what fits in, "squash" distorts it.
function placement(width, height, target) {
  const whole = { left: 0, top: 0, right: width, bottom: height };
  const full = { ...whole, width: target.width, height: target.height, x: 0, y: 0 };
  const ratio = width / height, wanted = target.width / target.height;
  if (target.fit === "squash" || ratio === wanted) return full;
  if (target.fit === "crop") {
    const cutWidth = ratio >= wanted ? wanted * height : width;
    const cutHeight = ratio >= wanted ? height : width / wanted;
    const left = (width - cutWidth) * 0.5, top = (height - cutHeight) * 0.5;
    return { ...full, left, top, right: left + cutWidth, bottom: top + cutHeight };
  }
  if (ratio > wanted) full.height = roundEven((height / width) * target.width);
  else full.width = roundEven((width / height) * target.height);
  full.x = roundEven((target.width - full.width) * 0.5);
  full.y = roundEven((target.height - full.height) * 0.5);
  return full;
}

// Returns target.height × target.width × target.channels. `readRows(top, count)` returns rows of the
// image as RGBA, which may be written to; it is asked for a few rows at a time, so that large
// photographs take little memory.
function resize(width, height, readRows, target) {
  const place = placement(width, height, target);
  const columns = weightsOf(width, place.left, place.right, place.width);
  const rows = weightsOf(height, place.top, place.bottom, place.height);
  const top = rows[0].first;
  const last = rows[rows.length - 1];
  const bottom = last.first + last.weights.length;
  const line = place.width * 3;
  const narrow = new Uint8Array((bottom - top) * line);
  const half = 1 << (FRACTION_BITS - 1);
  for (let start = top; start < bottom; start += 256) {
    const count = Math.min(256, bottom - start);
    const pixels = readRows(start, count);
    layOnWhite(pixels);
    if (target.channels === 1) turnGray(pixels);
    let to = (start - top) * line;
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
  const { channels } = target;
  const resized = new Uint8Array(target.height * target.width * channels); // black around it
  rows.forEach(({ first, weights }, y) => {
    let to = ((y + place.y) * target.width + place.x) * channels;
    for (let x = 0; x < line; x += 3) {
      for (let channel = x; channel < x + channels; channel++) {
        let sum = half;
        for (let i = 0; i < weights.length; i++)
          sum = (sum + Math.imul(narrow[(first - top + i) * line + channel], weights[i])) | 0;
        resized[to++] = toByte(sum);
      }
    }
  });
  return resized;
}
