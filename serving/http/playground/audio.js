// Sound in the browser: recording, WAV files, waveform and spectrogram.
import { drop, el } from "./dom.js";
import { t } from "./words.js";

const RATE = 16_000;
const FRAME = 512;

/** A place to record or to drop audio; `take(file)` gets a file, `fail(sentence)` what went wrong. */
export function recorder({ word, take, fail }) {
  const button = el("button.quiet.record", { type: "button", word: "record", "aria-pressed": "false" });
  const zone = drop({ word, accept: "audio/*,video/webm", take: ([one]) => take(one) });
  zone.querySelector(".row").append(button);
  let running = null;

  async function begin() {
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    } catch (error) {
      fail(t({ NotAllowedError: "microphoneRefused", NotFoundError: "microphoneMissing" }[error.name] ?? "microphoneFailed"));
      return;
    }
    const parts = [];
    running = new MediaRecorder(stream);
    running.addEventListener("dataavailable", (event) => parts.push(event.data));
    running.addEventListener("stop", async () => {
      stream.getTracks().forEach((track) => track.stop());
      running = null;
      label("record", "false");
      try {
        const sound = await decoded(new Blob(parts), RATE);
        take(new File([wav(sound)], "recording.wav", { type: "audio/wav" }));
      } catch { fail(t("recordingFailed")); }
    });
    running.start();
    label("recordStop", "true");
  }

  function label(key, pressed) {
    button.dataset.word = key;
    button.textContent = t(key);
    button.setAttribute("aria-pressed", pressed);
  }
  button.addEventListener("click", () => {
    if (running) { running.stop(); return; }
    if (!navigator.mediaDevices?.getUserMedia || !window.MediaRecorder) fail(t("microphoneFailed"));
    else begin();
  });
  return zone;
}

/** A sound file as an AudioBuffer, mono, at `rate` samples a second. */
export async function decoded(blob, rate) {
  const context = new OfflineAudioContext(1, 1, rate);
  const found = await context.decodeAudioData(await blob.arrayBuffer());
  if (found.numberOfChannels === 1) return found;
  const mono = new OfflineAudioContext(1, found.length, rate);
  const source = new AudioBufferSourceNode(mono, { buffer: found });
  source.connect(mono.destination);
  source.start();
  return mono.startRendering();
}

/** An AudioBuffer as a WAV file of 16 bits. */
export function wav(buffer) {
  const samples = buffer.getChannelData(0);
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, value) => [...value].forEach((one, place) => view.setUint8(at + place, one.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + 2 * samples.length, true); text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, buffer.sampleRate, true); view.setUint32(28, 2 * buffer.sampleRate, true);
  view.setUint16(32, 2, true); view.setUint16(34, 16, true); text(36, "data"); view.setUint32(40, 2 * samples.length, true);
  samples.forEach((one, at) => view.setInt16(44 + 2 * at, Math.max(-1, Math.min(1, one)) * 32767, true));
  return view.buffer;
}

/** Draw the loudness of a sound over time. */
export function drawWaveform(canvas, buffer) {
  const { width, height, pen } = canvasOf(canvas);
  const samples = buffer.getChannelData(0);
  pen.fillStyle = getComputedStyle(canvas).color;
  const step = samples.length / width;
  for (let x = 0; x < width; x++) {
    let most = 0;
    for (let at = Math.floor(x * step); at < (x + 1) * step; at++) most = Math.max(most, Math.abs(samples[at] ?? 0));
    const tall = Math.max(1, most * height);
    pen.fillRect(x, (height - tall) / 2, 1, tall);
  }
}

/** Draw the strength of the frequencies of a sound over time, low ones at the bottom, on 60 decibels. */
export function drawSpectrogram(canvas, buffer) {
  const { width, height, pen } = canvasOf(canvas);
  const samples = buffer.getChannelData(0);
  const image = pen.createImageData(width, height);
  const columns = [];
  let top = 1e-9;
  for (let x = 0; x < width; x++) {
    const power = spectrum(samples, Math.round((x / width) * Math.max(0, samples.length - FRAME)));
    columns.push(power);
    for (const one of power) top = Math.max(top, one);
  }
  columns.forEach((power, x) => {
    for (let y = 0; y < height; y++) {
      const one = power[Math.floor(((height - 1 - y) / height) * power.length)];
      const share = Math.max(0, 1 + Math.log10(Math.max(one, 1e-12) / top) / 6);
      image.data.set([20 + 235 * share ** 1.6, 24 + 190 * share ** 1.2, 40 + 110 * Math.sin(Math.PI * share), 255], 4 * (y * width + x));
    }
  });
  pen.putImageData(image, 0, 0);
}

/** The power of the frequencies of a frame, by a Hann window and the fast Fourier transform. */
function spectrum(samples, begin) {
  const real = new Float32Array(FRAME);
  const other = new Float32Array(FRAME);
  for (let at = 0; at < FRAME; at++) real[at] = (samples[begin + at] ?? 0) * (0.5 - 0.5 * Math.cos((2 * Math.PI * at) / FRAME));
  for (let at = 1, flip = 0; at < FRAME; at++) {
    let bit = FRAME >> 1;
    for (; flip & bit; bit >>= 1) flip ^= bit;
    flip ^= bit;
    if (at < flip) [real[at], real[flip]] = [real[flip], real[at]];
  }
  for (let size = 2; size <= FRAME; size <<= 1) {
    const angle = (-2 * Math.PI) / size;
    for (let from = 0; from < FRAME; from += size) {
      for (let at = 0; at < size / 2; at++) {
        const [cos, sin] = [Math.cos(angle * at), Math.sin(angle * at)];
        const [low, high] = [from + at, from + at + size / 2];
        const re = real[high] * cos - other[high] * sin;
        const im = real[high] * sin + other[high] * cos;
        [real[high], other[high]] = [real[low] - re, other[low] - im];
        [real[low], other[low]] = [real[low] + re, other[low] + im];
      }
    }
  }
  return Float32Array.from({ length: FRAME / 2 }, (_, at) => real[at] ** 2 + other[at] ** 2);
}

function canvasOf(canvas) {
  const width = (canvas.width = Math.max(200, Math.round(canvas.clientWidth || 600)));
  const { height } = canvas;
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, width, height);
  return { width, height, pen };
}
