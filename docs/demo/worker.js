// Keeps the page on the device, so that it opens offline; a new version replaces it whole.
const PREFIX = `halfmeg ${self.registration.scope} `;
const CACHE = PREFIX + "46403cdafa51071e";

self.addEventListener("install", (event) => {
  const keep = async () => {
    const cache = await caches.open(CACHE);
    await cache.addAll(["./", "icon_192.png", "icon_512.png", "manifest.webmanifest"].map((file) => new Request(file, { cache: "reload" })));
    await self.skipWaiting();
  };
  event.waitUntil(keep());
});

self.addEventListener("activate", (event) => {
  const clean = async () => {
    const old = (await caches.keys()).filter((key) => key.startsWith(PREFIX) && key !== CACHE);
    await Promise.all(old.map((key) => caches.delete(key)));
    await self.clients.claim();
  };
  event.waitUntil(clean());
});

self.addEventListener("fetch", (event) => {
  if (event.request.method !== "GET") return;
  const answer = async () => {
    const cache = await caches.open(CACHE);
    const address = event.request.url.replace(/index\.html(?=$|\?)/, ""); // kept as "./"
    return (await cache.match(address, { ignoreSearch: true })) ?? fetch(event.request);
  };
  event.respondWith(answer());
});
