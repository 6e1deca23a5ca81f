// Run by node behind network.js and unfamiliar.js: the builds' logits of all images, with SIMD and
// then without, and the scores of unfamiliarity of the latter.
const { readFileSync, writeFileSync } = require("node:fs");
const [, , givenPath, imagesPath, logitsPath, scoresPath, numClasses] = process.argv;

(async () => {
  const { builds, shape, familiarity } = JSON.parse(readFileSync(givenPath, "utf8"));
  const images = readFileSync(imagesPath);
  const imageBytes = shape.channels * shape.height * shape.width;
  const found = [];
  let scores = [];
  for (const build of [builds.simd, builds.plain]) {
    const run = await openModule(moduleBytes(build));
    const all = new Float32Array((images.length / imageBytes) * numClasses);
    scores = [];
    for (let i = 0; i * imageBytes < images.length; i++) {
      const pixels = images.subarray(i * imageBytes, (i + 1) * imageBytes);
      const logits = run(pixels, +numClasses);
      all.set(logits, i * numClasses);
      if (familiarity) scores.push(unfamiliarity(pixels, logits, shape, familiarity));
    }
    found.push(Buffer.from(all.buffer));
  }
  writeFileSync(logitsPath, Buffer.concat(found));
  writeFileSync(scoresPath, Buffer.from(Float64Array.from(scores).buffer));
})();
