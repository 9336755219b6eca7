// The chat page: turns are kept here and sent whole with each question, as OpenAI's API wants them.
"use strict";

const at = (id) => document.getElementById(id);
const turns = []; // {role, text, images: [data URL]}
let pictures = []; // data URLs of the message being written
let running = null; // AbortController of the answer being written

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function headers() {
  const key = at("key").value;
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

async function call(path, body) {
  const options = body === undefined ? {} : { method: "POST", body: JSON.stringify(body), signal: running?.signal };
  const response = await fetch(path, { headers: headers(), ...options });
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  throw new Error(told?.error?.message ?? `the server answered with ${response.status}`);
}

function conversation(asked) {
  const system = at("system").value.trim();
  const messages = system ? [{ role: "system", content: system }] : [];
  for (const { role, text, images } of asked) {
    messages.push({ role, content: role === "user" ? place(text, images) : text });
  }
  return { model: at("model").value, messages };
}

// Pictures stand where the text says <image>, as many times as there are pictures; otherwise before the text.
function place(text, images) {
  const shown = images.map((url) => ({ type: "image_url", image_url: { url } }));
  const pieces = text.split("<image>");
  const said = (words) => (words ? [{ type: "text", text: words }] : []);
  if (pieces.length !== images.length + 1) return [...shown, ...said(text)];
  return pieces.flatMap((words, number) => [...(number ? [shown[number - 1]] : []), ...said(words)]);
}

function sampling() {
  const number = (id) => (at(id).value === "" ? undefined : Number(at(id).value));
  return { temperature: number("temperature"), top_p: number("top-p"), max_tokens: number("max-tokens"), seed: number("seed") };
}

// Turns

function show({ role, text, images, note }) {
  at("hint")?.remove();
  const turn = element("div", `turn ${role}`);
  if (images.length) {
    const thumbs = element("div", "thumbs");
    images.forEach((url, number) => {
      const image = element("img");
      image.src = url;
      image.alt = `Picture ${number + 1}`;
      thumbs.append(image);
    });
    turn.append(thumbs);
  }
  let number = 0;
  const words = role === "user" ? text.replaceAll("<image>", () => `[picture ${++number}]`) : text;
  turn.append(element("span", "said", words));
  if (note) say(turn, note);
  at("turns").append(turn);
  turn.scrollIntoView({ block: "end" });
  return turn;
}

function say(turn, note) {
  turn.append(element("span", "note", note));
}

function setRunning(controller) {
  running = controller;
  at("stop").hidden = !controller;
  at("send").disabled = Boolean(controller);
  at("retry").disabled = Boolean(controller) || !turns.some((turn) => turn.role === "user");
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (held + value).split("\n\n");
    held = parts.pop();
    for (const part of parts) if (part.startsWith("data: ") && part !== "data: [DONE]") yield JSON.parse(part.slice(6));
  }
}

async function answer() {
  setRunning(new AbortController());
  const turn = show({ role: "assistant", text: "", images: [] });
  const said = turn.querySelector(".said");
  const began = performance.now();
  let text = "";
  let note = "";
  try {
    const body = { ...conversation(turns), ...sampling(), stream: true, stream_options: { include_usage: true } };
    for await (const event of events(await call("v1/chat/completions", body))) {
      if (event.error) throw new Error(event.error.message);
      text += event.choices[0]?.delta.content ?? "";
      said.textContent = text;
      if (event.choices[0]?.finish_reason === "length") note = "cut at the longest answer, ";
      if (event.usage) {
        const seconds = ((performance.now() - began) / 1000).toFixed(1);
        note += `${event.usage.prompt_tokens} + ${event.usage.completion_tokens} tokens, ${seconds} s`;
      }
      turn.scrollIntoView({ block: "end" });
    }
  } catch (error) {
    if (error.name === "AbortError") note = "stopped";
    else {
      turn.classList.add("error");
      said.textContent = `${text}${text ? "\n" : ""}${error.message}`;
    }
  }
  if (note) say(turn, note);
  if (text) turns.push({ role: "assistant", text, images: [], note });
  turn.scrollIntoView({ block: "end" });
  setRunning(null);
}

function draw() {
  at("turns").replaceChildren();
  turns.forEach(show);
}

function send() {
  const text = at("text").value.trim();
  if (running || (!text && !pictures.length)) return;
  if (turns.at(-1)?.role === "user") turns.pop(); // it got no answer; this question takes its place
  const turn = { role: "user", text, images: pictures };
  turns.push(turn);
  draw();
  at("text").value = "";
  at("composer-note").textContent = "";
  setPictures([]);
  answer();
}

function retry() {
  while (turns.at(-1)?.role === "assistant") turns.pop();
  draw();
  answer();
}

// Pictures

function setPictures(urls) {
  pictures = urls;
  at("pictures").replaceChildren(
    ...urls.map((url, number) => {
      const figure = element("figure");
      const image = element("img");
      image.src = url;
      image.alt = `Picture ${number + 1}`;
      const remove = element("button", "", "×");
      remove.type = "button";
      remove.setAttribute("aria-label", `Remove picture ${number + 1}`);
      remove.onclick = () => setPictures(pictures.filter((_, other) => other !== number));
      figure.append(image, remove);
      return figure;
    }),
  );
}

function read(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = reject;
    reader.readAsDataURL(file);
  });
}

async function add(files) {
  const chosen = [...files].filter((file) => file.type.startsWith("image/"));
  const urls = await Promise.all(chosen.map(read));
  setPictures([...pictures, ...urls]); // after the wait: others may have been added meanwhile
}

// What the buttons do

async function showPrompt() {
  const text = at("text").value.trim();
  const asked = text || pictures.length ? [...turns, { role: "user", text, images: pictures }] : [...turns];
  while (asked.at(-1)?.role === "assistant") asked.pop();
  const facts = at("prompt-facts");
  at("prompt-text").replaceChildren();
  try {
    if (!asked.length) throw new Error("Write a message first.");
    const view = await (await call("chat/prompt", conversation(asked))).json();
    facts.textContent = `${view.num_tokens} tokens`;
    let number = 0;
    for (const [kind, spelled] of view.pieces) {
      const image = kind === "image" && view.images[number++];
      const label = image && `image ${number}: ${image.width}×${image.height}, ${image.num_tiles} tile${image.num_tiles > 1 ? "s" : ""}, ${image.num_tokens} tokens`;
      at("prompt-text").append(element("span", kind, label || spelled));
    }
  } catch (error) {
    facts.textContent = error.message;
  }
  at("prompt").showModal();
}

async function example() {
  try {
    const sample = await (await call("chat/example")).json();
    setPictures(sample.images);
    at("text").value = sample.question;
    at("composer-note").textContent = `Held-out sample ${sample.key}; the expected answer: ${sample.answer}`;
  } catch (error) {
    show({ role: "error", text: error.message, images: [] });
  }
}

async function listModels() {
  try {
    const names = (await (await call("v1/models")).json()).data.map((model) => model.id);
    at("model").replaceChildren(...names.map((name) => new Option(name)));
  } catch (error) {
    show({ role: "error", text: error.message, images: [] });
  }
}

at("composer").onsubmit = (event) => { event.preventDefault(); send(); };
at("text").onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
};
at("stop").onclick = () => running?.abort();
at("retry").onclick = retry;
at("new").onclick = () => { running?.abort(); turns.length = 0; draw(); setPictures([]); setRunning(null); };
at("show-settings").onclick = () => {
  at("settings").hidden = !at("settings").hidden;
  at("show-settings").setAttribute("aria-expanded", String(!at("settings").hidden));
  at("turns").lastElementChild?.scrollIntoView({ block: "end" });
};
at("show-prompt").onclick = showPrompt;
at("example").onclick = example;
at("key").onchange = listModels;
at("files").onchange = async () => { await add(at("files").files); at("files").value = ""; };
document.onpaste = (event) => { if (event.clipboardData.files.length) { event.preventDefault(); add(event.clipboardData.files); } };
document.ondragover = (event) => { event.preventDefault(); at("composer").classList.add("drop"); };
document.ondragleave = () => at("composer").classList.remove("drop");
document.ondrop = (event) => { event.preventDefault(); at("composer").classList.remove("drop"); add(event.dataTransfer.files); };
listModels();
