// One rater's way through a listening test. What was answered is on the server; only who answers is kept here.
const KEY = "stepaudio-rater";
const WORDS = {
  mos: { 1: "1 bad", 2: "2 poor", 3: "3 fair", 4: "4 good", 5: "5 excellent" },
  cmos: { "-3": "A much better", "-2": "A better", "-1": "A slightly better", 0: "the same", 1: "B slightly better",
    2: "B better", 3: "B much better" },
  pairwise: { "-1": "A", 0: "no difference", 1: "B" },
};
const find = (id) => document.getElementById(id);
let rater = localStorage.getItem(KEY);
let started = 0;

async function call(path, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(path, options || {});
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error || answer.detail || response.statusText);
  return answer;
}

function show(id) {
  for (const section of document.querySelectorAll("section")) section.hidden = section.id !== id;
}

function attempt(work) {
  return async (event) => {
    find("problem").hidden = true;
    try {
      await work(event);
    } catch (error) {
      find("problem").textContent = `This did not work: ${error.message}. Please try again.`;
      find("problem").hidden = false;
    }
  };
}

async function begin() {
  if (!rater) {
    rater = (await call("/api/raters", {})).rater;
    localStorage.setItem(KEY, rater);
  }
  await go();
}

async function go() {
  let state;
  try {
    state = await call(`/api/next?rater=${rater}`);
  } catch (error) {
    localStorage.removeItem(KEY); // the ratings were begun anew
    rater = null;
    throw error;
  }
  find("title").textContent = document.title = state.title;
  if (state.headphones) return checkHeadphones(state.headphones);
  if (!state.trial) return show("end");
  present(state);
}

// ---------------------------------------------------------------- headphones

let tones = { total: 0, answers: [] };

function checkHeadphones(total) {
  tones = { total, answers: [] };
  askTone();
  show("headphones");
}

function askTone() {
  find("tone-number").textContent = `${tones.answers.length + 1} of ${tones.total}`;
  find("tone-answers").disabled = true;
}

async function playTones() {
  const sound = new Audio(`/api/tones/${tones.answers.length}?rater=${rater}`);
  await sound.play();
  find("tone-answers").disabled = false;
}

async function answerTone(event) {
  if (event.target.tagName !== "BUTTON") return;
  tones.answers.push(Number(event.target.value));
  if (tones.answers.length < tones.total) return askTone();
  const { passed } = await call("/api/headphones", { rater, answers: tones.answers });
  if (passed) return go();
  tones.answers = [];
  askTone();
  throw new Error("it seems that you do not wear headphones");
}

// ---------------------------------------------------------------- trials

function present(state) {
  const { trial, kind } = state;
  find("question").textContent = state.question;
  find("progress").max = state.total;
  find("progress").value = state.done;
  find("count").textContent = `${state.done + 1} of ${state.total}`;
  find("attention").hidden = trial.attention === null;
  const wanted = WORDS[kind][trial.attention] || trial.attention;
  find("attention").textContent = `To show that you are attentive, please choose “${wanted}” this time.`;
  find("legend").textContent = kind === "mos" ? "Your rating" : "Which is better?";
  find("players").replaceChildren(...trial.audio.map((source, index) => player(source, index, trial.audio.length)));
  find("choices").replaceChildren(...state.scale.map((value) => option(value, WORDS[kind][value] || String(value))));
  find("next").dataset.trial = trial.number;
  find("next").disabled = true;
  started = performance.now();
  show("trial");
}

function player(source, index, count) {
  const name = count > 1 ? "AB"[index] : "Recording";
  const figure = document.createElement("figure");
  const audio = document.createElement("audio");
  Object.assign(audio, { src: source, controls: true, preload: "auto" });
  audio.setAttribute("aria-label", name);
  audio.addEventListener("ended", () => { audio.dataset.heard = "yes"; ready(); });
  const caption = document.createElement("figcaption");
  caption.textContent = name;
  figure.append(audio, caption);
  return figure;
}

function option(value, text) {
  const label = document.createElement("label");
  const input = document.createElement("input");
  Object.assign(input, { type: "radio", name: "value", value });
  input.addEventListener("change", ready);
  label.append(input, text);
  return label;
}

function ready() {
  const heard = [...document.querySelectorAll("#players audio")].every((audio) => audio.dataset.heard);
  find("next").disabled = !heard || !document.querySelector("#choices input:checked");
}

async function rate() {
  const value = Number(document.querySelector("#choices input:checked").value);
  const seconds = (performance.now() - started) / 1000;
  await call("/api/ratings", { rater, trial: Number(find("next").dataset.trial), value, seconds });
  await go();
}

find("begin").addEventListener("click", attempt(begin));
find("play-tones").addEventListener("click", attempt(playTones));
find("tone-answers").addEventListener("click", attempt(answerTone));
find("next").addEventListener("click", attempt(rate));
