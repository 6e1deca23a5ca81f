const network = JSON.parse(document.getElementById("network").textContent);
const opened = openNetwork(network);
const element = (id) => document.getElementById(id);
const MAX_BARS = 10;
const PICTURE_SIDE = 720;
const TIMED_MS = 30; // One run is too short for the clocks of some browsers.

function decodeBase64(text) {
  return Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
}

function say(problem) {
  element("problem").textContent = problem;
  element("problem").hidden = !problem;
}

// Rows of a bitmap as RGBA, whatever its size: a canvas of all of it may be larger than allowed.
function rowReader(bitmap) {
  const canvas = document.createElement("canvas");
  canvas.width = bitmap.width;
  return (top, count) => {
    canvas.height = count; // which also clears it
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.imageSmoothingEnabled = false;
    context.drawImage(bitmap, 0, -top);
    return context.getImageData(0, 0, bitmap.width, count).data;
  };
}

function probabilities(logits) {
  const largest = Math.max(...logits);
  const shares = Array.from(logits, (logit) => Math.exp((logit - largest) / network.temperature));
  const total = shares.reduce((sum, share) => sum + share);
  return shares.map((share) => share / total);
}

function showBars(shares) {
  const order = network.classes.map((_, index) => index);
  if (shares) order.sort((a, b) => shares[b] - shares[a]);
  const bars = element("bars");
  const shown = Math.min(MAX_BARS, order.length);
  while (bars.children.length < shown) {
    const bar = document.createElement("li");
    for (const part of ["name", "track", "share"])
      bar.append(Object.assign(document.createElement("span"), { className: part }));
    bar.children[1].append(Object.assign(document.createElement("div"), { className: "fill" }));
    bars.append(bar);
  }
  order.slice(0, shown).forEach((index, place) => {
    const [name, track, share] = bars.children[place].children;
    name.textContent = name.title = network.classes[index];
    track.firstChild.style.width = shares ? `${100 * shares[index]}%` : "0";
    share.textContent = shares ? `${(100 * shares[index]).toFixed(1)}%` : "";
    bars.children[place].className = shares && place === 0 ? "first" : "";
  });
}

// Shows the image as it is fitted, but in the canvas's finer pixels.
function showPicture(bitmap) {
  const canvas = element("picture");
  canvas.width = Math.round(PICTURE_SIDE * Math.min(1, network.width / network.height));
  canvas.height = Math.round(PICTURE_SIDE * Math.min(1, network.height / network.width));
  const target = { width: canvas.width, height: canvas.height, fit: network.fit };
  const { left, top, right, bottom, ...to } = placement(bitmap.width, bitmap.height, target);
  const context = canvas.getContext("2d");
  context.fillStyle = "black";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = "white"; // what transparency is laid on
  context.fillRect(to.x, to.y, to.width, to.height);
  context.imageSmoothingEnabled = Math.min(right - left, bottom - top) > PICTURE_SIDE / 4;
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, left, top, right - left, bottom - top, to.x, to.y, to.width, to.height);
  canvas.hidden = false;
  element("invitation").hidden = true;
}

function showPixels(pixels) {
  const canvas = element("pixels");
  const { channels, height, width } = network;
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let i = 0; i < height * width; i++) {
    const [red, green = red, blue = red] = pixels.subarray(channels * i, channels * (i + 1));
    image.data.set([red, green, blue, 255], 4 * i);
  }
  context.putImageData(image, 0, 0);
  const order = height === width ? "" : " (height × width)";
  const gray = channels === 1 ? " in gray" : "";
  element("pixel-size").textContent = `${height} × ${width} pixels${order}${gray}`;
}

function timed(run) {
  const start = performance.now();
  let runs = 0, passed = 0;
  do {
    run();
    runs++;
    passed = performance.now() - start;
  } while (passed < TIMED_MS);
  return passed / runs;
}

let latest = 0;

function clear() {
  element("verdict").textContent = "Which of these is it?";
  element("verdict").className = "waiting";
  element("unfamiliar").textContent = "";
  element("picture").hidden = element("seen").hidden = true;
  element("invitation").hidden = false;
  showBars(null);
}

// What stood there was of another image, and what is still being computed is, too.
function refuse(problem) {
  latest++;
  clear();
  say(problem);
}

// Of 16 bits a browser hands out the upper 8: an image that uses the lower 12 alone is next to black.
async function isReadAsBlack(blob, bitmap) {
  const header = new Uint8Array(await blob.slice(0, 26).arrayBuffer());
  const isDeep = header[0] === 0x89 && header[1] === 0x50 && header[24] === 16; // a PNG's bits
  if (!isDeep) return false;
  const read = rowReader(bitmap);
  for (let row = 0; row < bitmap.height; row++)
    if (read(row, 1).some((value, index) => index % 4 < 3 && value >= 16)) return false;
  return true;
}

async function classify(blob, name) {
  const turn = ++latest;
  let bitmap;
  try {
    // Colours as they are stored, as in training; turned as the camera was held.
    bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  } catch {
    const told = `${name} is no image that this browser can read; JPEG, PNG and WebP are.`;
    if (turn === latest) refuse(told);
    return;
  }
  const { run, build } = await opened;
  if (turn !== latest) return; // another image came while this one was decoded
  if (Math.min(bitmap.width, bitmap.height) < 2) {
    refuse(`${name} has ${bitmap.width} × ${bitmap.height} pixels; 2 × 2 and more are needed.`);
    return;
  }
  if (await isReadAsBlack(blob, bitmap)) {
    const told = `${name} uses 12 or fewer of its 16 bits, which are read as next to black; store 8.`;
    if (turn === latest) refuse(told);
    return;
  }
  if (turn !== latest) return;
  const fitted = placement(bitmap.width, bitmap.height, network);
  if (Math.min(fitted.width, fitted.height) < 1) {
    refuse(`${name}, of ${bitmap.width} × ${bitmap.height} pixels, is too narrow.`);
    return;
  }
  say("");
  showPicture(bitmap);
  await new Promise((painted) => setTimeout(painted)); // a large photograph takes a moment
  if (turn !== latest) return;
  const start = performance.now();
  const pixels = resize(bitmap.width, bitmap.height, rowReader(bitmap), network);
  const resized = performance.now() - start;
  bitmap.close();
  const logits = run(pixels, network.classes.length);
  const shares = probabilities(logits);
  const milliseconds = timed(() => run(pixels, network.classes.length));
  const best = shares.indexOf(Math.max(...shares));
  element("verdict").textContent = network.classes[best];
  element("verdict").className = "";
  const known = network.familiarity;
  const isUnfamiliar = known && unfamiliarity(pixels, logits, network, known) > known.threshold;
  element("unfamiliar").textContent = isUnfamiliar ? known.remark : "";
  showBars(shares);
  showPixels(pixels);
  element("times").textContent =
    `It took ${milliseconds.toFixed(1)} ms (WebAssembly, ${build}); scaling the image, ` +
    `${resized.toFixed(0)} ms.`;
  element("seen").hidden = false;
}

function classifyFiles(files) {
  if (files.length) classify(files[0], files[0].name || "The pasted file");
}

for (const id of ["file", "camera"])
  element(id).addEventListener("change", ({ target }) => {
    classifyFiles([...target.files]);
    target.value = ""; // so that the same file can be chosen again
  });

addEventListener("paste", ({ clipboardData }) => {
  if (clipboardData.files.length) classifyFiles(clipboardData.files);
  else refuse("What was pasted is no image.");
});

addEventListener("dragover", (event) => {
  event.preventDefault();
  element("stage").className = "over";
});
addEventListener("dragleave", ({ relatedTarget }) => {
  if (!relatedTarget) element("stage").className = "";
});
addEventListener("drop", (event) => {
  event.preventDefault();
  element("stage").className = "";
  if (event.dataTransfer.files.length) classifyFiles(event.dataTransfer.files);
  else refuse("What was dropped is no image file.");
});

network.examples.forEach((text, index) => {
  const button = Object.assign(document.createElement("button"), { type: "button" });
  const image = Object.assign(new Image(), { src: `data:image/png;base64,${text}`, alt: `Example ${index + 1}` });
  button.append(image);
  button.addEventListener("click", () => classify(new Blob([decodeBase64(text)]), image.alt));
  element("examples").append(button);
  element("examples").hidden = false;
});

clear();
opened.catch((error) => say(`This browser cannot run the network: ${error.message}`));

// A page from a server can be installed where that server has these files beside it.
if (location.protocol.startsWith("http")) {
  const link = (rel, href) => document.head.append(Object.assign(document.createElement("link"), { rel, href }));
  link("manifest", "manifest.webmanifest");
  link("apple-touch-icon", "icon_192.png");
  navigator.serviceWorker?.register("worker.js").catch(() => {}); // without it the page only needs the server
}
