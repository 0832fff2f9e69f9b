// The microphone in the audio thread: blocks of 40 ms at 24 kHz, whatever rate the device has.
const RATE = 24000;
const BLOCK = 960;

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.block = new Int16Array(BLOCK);
    this.filled = 0;
    this.step = sampleRate / RATE; // input samples per output sample
    this.position = 0; // of the next output sample, in input samples from the start of the next input
    this.sum = 0;
    this.count = 0;
  }

  // Each output sample is the mean of the input samples it spans: a low pass and a decimation in one.
  process([[channel]]) {
    if (!channel) return true;
    for (const sample of channel) {
      this.sum += sample;
      this.count += 1;
      this.position += 1;
      while (this.position >= this.step) {
        this.position -= this.step;
        this.emit(this.count ? this.sum / this.count : sample);
        this.sum = 0;
        this.count = 0;
      }
    }
    return true;
  }

  emit(value) {
    this.block[this.filled++] = Math.max(-1, Math.min(1, value)) * 32767;
    if (this.filled === BLOCK) {
      this.port.postMessage(this.block);
      this.filled = 0;
    }
  }
}

registerProcessor("capture", Capture);
