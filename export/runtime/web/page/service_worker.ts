/**
 * Keeps the page and its bundle for use without a network: every file that was built, each checked
 * against its sha256, or none.
 */
export {};

interface WorkerScope {
  readonly registration: { readonly scope: string };
  readonly clients: { claim(): Promise<void> };
  skipWaiting(): Promise<void>;
  addEventListener(name: "install" | "activate", listener: (event: Extendable) => void): void;
  addEventListener(name: "fetch", listener: (event: FetchAsked) => void): void;
  addEventListener(name: "message", listener: (event: MessageEvent<unknown>) => void): void;
}

interface Extendable {
  waitUntil(work: Promise<unknown>): void;
}

interface FetchAsked extends Extendable {
  readonly request: Request;
  respondWith(response: Promise<Response>): void;
}

/** Path to sha256, and a name for the whole: put in by build.mjs. */
declare const BUILT_FILES: Record<string, string>;
declare const BUILD_NAME: string;

const PREFIX = "rekd-edge ";
const worker = self as unknown as WorkerScope;
const cacheName = `${PREFIX}${worker.registration.scope} ${BUILD_NAME}`;

async function checked(path: string, sha256: string): Promise<Response> {
  for (const mode of ["default", "reload"] as const) {
    const response = await fetch(new Request(path, { cache: mode }));
    if (!response.ok) continue;
    const content = await response.arrayBuffer();
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
    const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
    const type = response.headers.get("content-type") ?? "application/octet-stream";
    if (found === sha256) return new Response(content, { headers: { "content-type": type } });
  }
  throw new Error(`${path} is not what was built`);
}

async function install(): Promise<void> {
  const cache = await caches.open(cacheName);
  try {
    for (const [path, sha256] of Object.entries(BUILT_FILES)) {
      await cache.put(path, await checked(path, sha256));
    }
  } catch (error) {
    await caches.delete(cacheName);
    throw error;
  }
}

async function dropOld(): Promise<void> {
  const own = `${PREFIX}${worker.registration.scope} `;
  for (const name of await caches.keys()) {
    if (name.startsWith(own) && name !== cacheName) await caches.delete(name);
  }
  await worker.clients.claim();
}

async function answer(request: Request): Promise<Response> {
  const { scope } = worker.registration;
  const [asked = ""] = request.url.split(/[?#]/);
  const kept = await caches.open(cacheName);
  return (await kept.match(asked === scope ? `${scope}index.html` : asked)) ?? fetch(request);
}

worker.addEventListener("install", (event) => event.waitUntil(install()));
worker.addEventListener("activate", (event) => event.waitUntil(dropOld()));
worker.addEventListener("message", (event) => {
  if (event.data === "activate") void worker.skipWaiting();
});
worker.addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method === "GET" && request.url.startsWith(worker.registration.scope)) {
    event.respondWith(answer(request));
  }
});
