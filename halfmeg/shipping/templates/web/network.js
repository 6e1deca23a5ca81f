// A build is its code, then its weights.
function decodeBase64(text) {
  return Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
}

function moduleBytes({ code, data }) {
  const parts = [code, data].map(decodeBase64);
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
