// One pair: shows both sides at once, sends each answer as it is given, and asks for the next pair when all are.
"use strict";

const main = document.querySelector("main");
const message = document.querySelector(".message");
const dialog = document.querySelector("dialog");
const fieldsets = [...document.querySelectorAll("fieldset")];
const media = [...document.querySelectorAll("figure img, figure video")];
const ANSWER_OF_KEY = { ArrowLeft: "left", 1: "left", ArrowDown: "same", 2: "same", ArrowRight: "right", 3: "right" };
let loading = true;
let sending = false;

const open = () => fieldsets.find((fieldset) => !fieldset.dataset.answer);

function draw() {
  for (const fieldset of fieldsets) {
    const { answer } = fieldset.dataset;
    fieldset.classList.toggle("current", fieldset === open());
    for (const button of fieldset.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.value === answer));
      button.disabled = loading || Boolean(answer);
    }
  }
}

async function vote(fieldset, answer) {
  if (loading || sending || !fieldset || fieldset.dataset.answer) return;
  sending = true;
  message.textContent = "";
  try {
    const body = JSON.stringify({ pair: main.dataset.pair, question: fieldset.dataset.question, answer });
    const headers = { "Content-Type": "application/json" };
    const response = await fetch(main.dataset.votes, { method: "POST", headers, body });
    if (response.status === 409) return location.reload(); // answered in another window: show what is there
    if (!response.ok) throw new Error(response.status);
    fieldset.dataset.answer = answer;
    draw();
    if (!open()) location.reload();
    else if (fieldset.contains(document.activeElement)) open().querySelector("button").focus();
  } catch {
    message.textContent = "That answer could not be saved. Is the connection there? Please answer again.";
  } finally {
    sending = false;
  }
}

function enlarge(side) {
  const found = document.querySelector(`[data-side=${side}] > *`).cloneNode();
  found.muted = true; // a clone forgets it
  dialog.dataset.side = side;
  dialog.querySelector("p").textContent = side === "left" ? "Left" : "Right";
  dialog.querySelector("div").replaceChildren(found);
  if (!dialog.open) dialog.showModal();
}

const swap = () => enlarge(dialog.dataset.side === "left" ? "right" : "left");

for (const fieldset of fieldsets) {
  for (const button of fieldset.querySelectorAll("button")) {
    button.addEventListener("click", () => vote(fieldset, button.value));
  }
}
for (const button of document.querySelectorAll(".enlarge")) {
  button.addEventListener("click", () => enlarge(button.dataset.side));
}

let touched = 0;
dialog.addEventListener("pointerdown", (event) => { touched = event.clientX; });
dialog.addEventListener("pointerup", (event) => {
  if (Math.abs(event.clientX - touched) > 40) swap();
  else dialog.close();
});
dialog.addEventListener("close", () => dialog.querySelector("div").replaceChildren());

document.addEventListener("keydown", (event) => {
  const answer = ANSWER_OF_KEY[event.key];
  if (!answer || event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  if (!dialog.open) vote(open(), answer);
  else if (answer !== "same") swap();
});

const ready = (one) => one.decode ? one.decode() : new Promise((resolve, reject) => {
  if (one.readyState >= 3) resolve();
  one.addEventListener("canplay", resolve, { once: true });
  one.addEventListener("error", reject, { once: true });
});

Promise.all(media.map(ready)).then(
  () => {
    for (const one of media) {
      if (one.naturalWidth < 200) one.classList.add("small"); // its pixels are what is judged
      if (one.play) {
        one.currentTime = 0; // both from their beginnings
        one.play().catch(() => { one.controls = true; });
      }
    }
    loading = false;
    main.setAttribute("aria-busy", "false");
    draw();
  },
  () => { message.textContent = "This pair could not be loaded. Please reload the page."; },
);
draw();
