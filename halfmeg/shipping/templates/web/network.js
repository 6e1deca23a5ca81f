// Four bytes are five digits of base 85, the highest first; those of a last, shorter group are cut.
const DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;,=>?@^_`{|}~";

function decodeBase85(text) {
  const values = new Uint8Array(128);
  [...DIGITS].forEach((digit, value) => (values[digit.charCodeAt(0)] = value));
  const missing = (5 - (text.length % 5)) % 5;
  const digits = text + DIGITS[84].repeat(missing);
  const bytes = new DataView(new ArrayBuffer((digits.length / 5) * 4));
  for (let group = 0; group * 5 < digits.length; group++) {
    let number = 0;
    for (let i = 5 * group; i < 5 * group + 5; i++) number = 85 * number + values[digits.charCodeAt(i)];
    bytes.setUint32(4 * group, number);
  }
  return new Uint8Array(bytes.buffer, 0, bytes.byteLength - missing);
}

// A build is its code, then its weights.
function moduleBytes({ code, data }) {
  const parts = [code, data].map(decodeBase85);
  const bytes = new Uint8Array(parts[0].length + parts[1].length);
  bytes.set(parts[0]);
  bytes.set(parts[1], parts[0].length);
  return bytes;
}

// Returns a function from bytes, height × width × channels, to logits.
async function openModule(bytes) {
  const { instance } = await WebAssembly.instantiate(bytes, {});
  const { memory, image, logits, classify } = instance.exports;
  return (pixels, numClasses) => {
    new Uint8Array(memory.buffer, image(), pixels.length).set(pixels);
    classify();
    return new Float32Array(memory.buffer, logits(), numClasses).slice();
  };
}

// Opens the build with SIMD where the browser has it, else the plain one, and says which it is.
async function openNetwork({ code, data }) {
  const bytes = moduleBytes({ code: code.simd, data: data.simd });
  if (WebAssembly.validate(bytes)) return { run: await openModule(bytes), build: "SIMD" };
  const plain = moduleBytes({ code: code.plain, data: data.plain ?? data.simd });
  return { run: await openModule(plain), build: "no SIMD" };
}
