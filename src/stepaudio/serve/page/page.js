// The page: one Realtime session over a WebSocket. Standard events carry the conversation; the extension events
// (state, latency) are asked for in the address and are only shown.

const RATE = 24000;
const $ = (id) => document.getElementById(id);

// ---------------------------------------------------------------- the tools that this page offers

const TOOLS = {
  get_local_time: {
    description: "The date and time where the user is.",
    parameters: { type: "object", properties: {} },
    run: () => ({ local_time: new Date().toLocaleString() }),
  },
};

// ---------------------------------------------------------------- the conversation on screen

class Log {
  constructor(list) {
    this.list = list;
    this.turns = new Map(); // item id -> { row, said, text }
  }

  turn(id, who) {
    if (!this.turns.has(id)) {
      const row = document.createElement("li");
      row.className = `turn ${who}`;
      const name = document.createElement("span");
      name.className = "who";
      name.textContent = who === "user" ? "you" : "agent";
      const said = document.createElement("span");
      said.className = "said";
      row.append(name, said);
      this.list.append(row);
      this.turns.set(id, { row, said, text: "" });
      row.scrollIntoView({ block: "nearest" });
    }
    return this.turns.get(id);
  }

  write(id, who, text, { pending = false } = {}) {
    const turn = this.turn(id, who);
    turn.text = text;
    turn.said.textContent = text;
    turn.said.classList.toggle("pending", pending);
  }

  add(id, who, delta) {
    this.write(id, who, this.turn(id, who).text + delta);
  }

  drop(id) {
    this.turns.get(id)?.row.remove();
    this.turns.delete(id);
  }

  // What was not heard is struck through.
  heard(id, prefix) {
    const turn = this.turns.get(id);
    if (!turn || !turn.text.startsWith(prefix)) return;
    const rest = document.createElement("del");
    rest.textContent = turn.text.slice(prefix.length);
    turn.said.replaceChildren(prefix, rest);
  }

  tool(callId, text) {
    let row = document.getElementById(`call-${callId}`);
    if (!row) {
      row = document.createElement("li");
      row.className = "tool";
      row.id = `call-${callId}`;
      this.list.append(row);
    }
    row.textContent = text;
  }

  // The wait after the end of speech, step by step, as a bar of at most two seconds.
  latency(id, times) {
    const turn = this.turns.get(id);
    if (!turn) return;
    const steps = [["endpoint", times.endpoint], ["transcribe", times.transcript],
      ["token", times.first_token], ["audio", times.first_audio]].filter(([, at]) => at != null);
    const bar = document.createElement("div");
    bar.className = "bar";
    bar.setAttribute("aria-hidden", "true");
    let from = 0;
    for (const [name, at] of [...steps].sort((a, b) => a[1] - b[1])) {
      const part = document.createElement("span");
      part.className = name;
      part.style.left = `${Math.min(100, from * 50)}%`;
      part.style.width = `${Math.max(0, Math.min(2, at) - from) * 50}%`;
      from = Math.max(from, at);
      bar.append(part);
    }
    const words = document.createElement("div");
    words.className = "times";
    const says = { endpoint: "turn over", transcribe: "transcribed", token: "first word", audio: "first sound" };
    words.textContent = steps.map(([name, at]) => `${says[name]} ${at.toFixed(2)} s`).join(", ")
      + (times.speculated ? "; prepared in the pause" : "");
    turn.row.append(bar, words);
  }
}

// ---------------------------------------------------------------- sound in and out

class Microphone {
  static async open(onBlock) {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new Error("This browser gives no microphone to this page; open it over https or on localhost.");
    }
    const stream = await navigator.mediaDevices.getUserMedia({
      audio: { channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true },
    });
    const context = new AudioContext();
    await context.audioWorklet.addModule("capture.js");
    const node = new AudioWorkletNode(context, "capture", { numberOfOutputs: 0 });
    node.port.onmessage = ({ data }) => onBlock(data);
    context.createMediaStreamSource(stream).connect(node);
    return new Microphone(stream, context);
  }

  constructor(stream, context) {
    this.stream = stream;
    this.context = context;
  }

  set muted(muted) {
    for (const track of this.stream.getTracks()) track.enabled = !muted;
  }

  close() {
    for (const track of this.stream.getTracks()) track.stop();
    this.context.close();
  }
}

class Loudspeaker {
  constructor(onBlock) {
    this.context = new AudioContext({ sampleRate: RATE });
    this.onBlock = onBlock;
    this.next = 0; // when the audio that is queued ends, on the context's clock
    this.playing = new Set();
    this.item = null; // { id, started, seconds }: the item that is audible, and how much of it is queued
  }

  play(itemId, samples) {
    const buffer = this.context.createBuffer(1, samples.length, RATE);
    buffer.getChannelData(0).set(samples);
    const source = this.context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.context.destination);
    const start = Math.max(this.next, this.context.currentTime + 0.02);
    source.start(start);
    source.onended = () => this.playing.delete(source);
    this.playing.add(source);
    if (this.item?.id !== itemId) this.item = { id: itemId, started: start, gaps: 0, seconds: 0 };
    else this.item.gaps += start - this.next;
    this.item.seconds += buffer.duration;
    this.next = start + buffer.duration;
    setTimeout(() => this.onBlock(samples), (start - this.context.currentTime) * 1000);
  }

  // Be silent now; returns the item that was audible and how many milliseconds of it were heard, or null.
  stop() {
    const now = this.context.currentTime;
    const cut = this.item && now < this.next
      ? { id: this.item.id, ms: Math.max(0, Math.round((now - this.item.started - this.item.gaps) * 1000)) } : null;
    for (const source of this.playing) source.stop();
    this.playing.clear();
    this.next = 0;
    this.item = null;
    return cut;
  }

  close() {
    this.stop();
    this.context.close();
  }
}

class Wave {
  constructor(canvas) {
    this.canvas = canvas;
    this.you = new Array(200).fill(0);
    this.agent = new Array(200).fill(0);
    this.draw();
  }

  push(line, samples, scale) {
    let peak = 0;
    for (const sample of samples) peak = Math.max(peak, Math.abs(sample));
    line.push(peak / scale);
    line.shift();
    // Often enough to look alive: the models may share the processor with this page.
    this.drawing ??= setTimeout(() => requestAnimationFrame(() => this.draw()), 50);
  }

  draw() {
    this.drawing = null;
    const { canvas } = this;
    const paint = canvas.getContext("2d");
    const middle = canvas.height / 2;
    const style = getComputedStyle(canvas);
    paint.clearRect(0, 0, canvas.width, canvas.height);
    const width = canvas.width / this.you.length;
    const side = (line, colour, sign) => {
      paint.fillStyle = colour;
      line.forEach((level, index) => {
        const height = Math.max(1, level * (middle - 2));
        paint.fillRect(index * width, sign > 0 ? middle - height : middle, width - 1, height);
      });
    };
    side(this.you, style.color, 1);
    side(this.agent, style.borderTopColor, -1);
  }
}

// ---------------------------------------------------------------- the session

const log = new Log($("log"));
const wave = new Wave($("wave"));
const STATES = { off: "not connected", connecting: "connecting", silence: "listening", user_speaking: "you speak",
  user_paused: "you paused", bot_replying: "the agent replies" };
let session = null;

function problem(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

function show(state) {
  $("state").dataset.state = state;
  $("state").textContent = STATES[state] ?? state;
  $("talk").textContent = session ? "Stop" : "Start talking";
  $("talk").setAttribute("aria-pressed", String(Boolean(session)));
  $("mute").disabled = !session?.microphone;
}

class Session {
  constructor(key) {
    this.speaker = new Loudspeaker((samples) => wave.push(wave.agent, samples, 1));
    this.partial = new Map(); // item id -> the transcript so far
    const address = new URL("v1/realtime?model=default&extensions=1", location.href);
    address.protocol = address.protocol.replace("http", "ws");
    this.socket = new WebSocket(address, key ? ["realtime", `openai-insecure-api-key.${key}`] : ["realtime"]);
    this.opened = new Promise((resolve, reject) => {
      this.socket.onopen = resolve;
      this.socket.onclose = (event) => {
        reject(new Error("The server closed the connection."));
        this.ended(event);
      };
    });
    this.socket.onmessage = ({ data }) => this.receive(JSON.parse(data));
  }

  send(event) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(event));
  }

  async listen() {
    this.microphone = await Microphone.open((block) => {
      wave.push(wave.you, block, 32768);
      const bytes = new Uint8Array(block.buffer, block.byteOffset, block.byteLength);
      this.send({ type: "input_audio_buffer.append", audio: btoa(String.fromCharCode(...bytes)) });
    });
  }

  configure() {
    this.send({
      type: "session.update",
      session: {
        type: "realtime",
        tools: Object.entries(TOOLS).map(([name, { description, parameters }]) =>
          ({ type: "function", name, description, parameters })),
        audio: {
          input: { transcription: { model: "default" }, turn_detection: { type: "semantic_vad" } },
          ...($("voice").value ? { output: { voice: $("voice").value } } : {}),
        },
      },
    });
  }

  // Silence now; the agent's words end where the listener's hearing did.
  interrupt() {
    const cut = this.speaker.stop();
    if (cut) this.send({ type: "conversation.item.truncate", item_id: cut.id, content_index: 0, audio_end_ms: cut.ms });
  }

  write(text) {
    this.send({ type: "response.cancel" });
    this.interrupt();
    this.send({ type: "conversation.item.create",
      item: { type: "message", role: "user", content: [{ type: "input_text", text }] } });
    this.send({ type: "response.create" });
  }

  close() {
    this.closing = true;
    this.socket.close();
    this.microphone?.close();
    this.speaker.close();
  }

  ended(event) {
    if (session !== this) return;
    session = null;
    this.microphone?.close();
    this.speaker.close();
    if (!this.closing) problem(event.reason || "The connection to the server was lost. Press Start to try again.");
    show("off");
  }

  receive(event) {
    const handle = HANDLERS[event.type];
    if (handle) handle(this, event);
  }
}

const HANDLERS = {
  "session.created": (s) => { s.configure(); show("silence"); },
  error: (s, { error }) => {
    if (error.code !== "response_cancel_not_active") problem(error.message);
  },
  "input_audio_buffer.speech_started": (s, { item_id }) => {
    s.interrupt();
    log.write(item_id, "user", "…", { pending: true });
  },
  "conversation.item.input_audio_transcription.delta": (s, { item_id, delta }) => {
    s.partial.set(item_id, (s.partial.get(item_id) ?? "") + delta);
    log.write(item_id, "user", s.partial.get(item_id), { pending: true });
  },
  "stepaudio.transcript.partial": (s, { item_id, text }) => log.write(item_id, "user", text, { pending: true }),
  "conversation.item.input_audio_transcription.completed": (s, { item_id, transcript }) => {
    s.partial.delete(item_id);
    if (transcript.trim()) log.write(item_id, "user", transcript);
    else log.drop(item_id);
  },
  "conversation.item.input_audio_transcription.failed": (s, { item_id, error }) =>
    log.write(item_id, "user", `(not understood: ${error.message})`),
  "conversation.item.deleted": (s, { item_id }) => log.drop(item_id),
  "conversation.item.added": (s, { item }) => {
    const text = item.content?.find((part) => part.type === "input_text")?.text;
    if (item.role === "user" && text) log.write(item.id, "user", text);
  },
  "stepaudio.item.heard": (s, { item_id, text }) => log.heard(item_id, text.trimEnd()),
  "response.output_audio_transcript.delta": (s, { item_id, delta }) => log.add(item_id, "agent", delta),
  "response.output_text.delta": (s, { item_id, delta }) => log.add(item_id, "agent", delta),
  "response.output_audio.delta": (s, { item_id, delta }) => {
    const bytes = Uint8Array.from(atob(delta), (char) => char.charCodeAt(0));
    const samples = Float32Array.from(new Int16Array(bytes.buffer), (value) => value / 32768);
    s.speaker.play(item_id, samples);
  },
  "response.function_call_arguments.done": (s, { call_id, name, arguments: text }) => {
    log.tool(call_id, `${name}(${text}) …`);
    let output;
    try {
      output = JSON.stringify(TOOLS[name].run(JSON.parse(text)));
    } catch (error) {
      output = JSON.stringify({ error: String(error) });
    }
    log.tool(call_id, `${name}(${text}) → ${output}`);
    s.send({ type: "conversation.item.create", item: { type: "function_call_output", call_id, output } });
    s.send({ type: "response.create" });
  },
  "response.done": (s, { response }) => {
    if (response.status === "failed") problem(response.status_details?.error?.message ?? "The reply failed.");
  },
  "stepaudio.state.changed": (s, { state }) => show(state),
  "stepaudio.turn.timed": (s, { item_id, ...times }) => log.latency(item_id, times),
};

async function start({ microphone }) {
  problem("");
  session = new Session($("key").value);
  show("connecting");
  const mine = session;
  try {
    await mine.opened;
    if (microphone) await mine.listen();
  } catch (error) {
    const denied = error.name === "NotAllowedError";
    const absent = error.name === "NotFoundError";
    mine.close();
    if (session === mine) session = null;
    problem(denied ? "The microphone is blocked; allow it for this page in the browser, or write below."
      : absent ? "No microphone was found; plug one in, or write below." : await explain(error));
    show("off");
    return;
  }
  $("mute").disabled = !mine.microphone;
}

// Why the server cannot be reached: it is gone, still loading, full, or wants a key.
async function explain(error) {
  try {
    const ready = await fetch("readyz");
    if (!ready.ok) return (await ready.json()).error?.message ?? "The server is not ready yet; try again soon.";
    const models = await fetch("v1/models", { headers: $("key").value ? { Authorization: `Bearer ${$("key").value}` } : {} });
    if (models.status === 401) {
      $("key-form").hidden = false;
      $("key").focus();
      return "This server wants an API key.";
    }
    return `${error.message} It may be full; try again in a moment.`;
  } catch {
    return "The server cannot be reached. Is it running?";
  }
}

function toggle() {
  if (session) {
    session.close();
    session = null;
    show("off");
  } else start({ microphone: true });
}

function mute() {
  const muted = $("mute").getAttribute("aria-pressed") !== "true";
  $("mute").setAttribute("aria-pressed", String(muted));
  $("mute").textContent = muted ? "Unmute" : "Mute";
  if (session?.microphone) session.microphone.muted = muted;
}

$("talk").onclick = toggle;
$("mute").onclick = mute;
$("key-form").onsubmit = (event) => {
  event.preventDefault();
  $("key-form").hidden = true;
  start({ microphone: true });
};
$("write").onsubmit = async (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text) return;
  if (!session) await start({ microphone: false });
  if (!session) return;
  session.write(text);
  $("text").value = "";
};
$("voice").onchange = () => session?.configure();
document.addEventListener("keydown", (event) => {
  if (event.target.closest("input, select, button") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.code === "Space") { event.preventDefault(); toggle(); }
  if (event.key.toLowerCase() === "m" && session?.microphone) mute();
});

try {
  const { data } = await (await fetch("v1/voices")).json();
  for (const { id, name, languages } of data) {
    const option = new Option(`${name ?? id} (${languages.join(", ")})`, id ?? name);
    $("voice").append(option);
  }
} catch {
  // Without the list the voice follows the language; what is wrong with the server shows when one starts.
}
show("off");
