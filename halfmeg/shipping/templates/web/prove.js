// Run by node behind network.js: the builds' logits of all images, with SIMD and then without.
const { readFileSync, writeFileSync } = require("node:fs");
const [, , partsPath, imagesPath, logitsPath, imageBytes, numClasses] = process.argv;

(async () => {
  const parts = JSON.parse(readFileSync(partsPath, "utf8"));
  const images = readFileSync(imagesPath);
  const found = [];
  for (const build of [parts.simd, parts.plain]) {
    const run = await openModule(moduleBytes(build));
    const all = new Float32Array((images.length / imageBytes) * numClasses);
    for (let i = 0; i * imageBytes < images.length; i++) {
      const pixels = images.subarray(i * imageBytes, (i + 1) * imageBytes);
      all.set(run(pixels, +numClasses), i * numClasses);
    }
    found.push(Buffer.from(all.buffer));
  }
  writeFileSync(logitsPath, Buffer.concat(found));
})();
