"""What the words say about the turn: is the sentence finished, is it a backchannel, did a continuation add anything?

English and Chinese. `TextTurnScorer` is our own end-of-turn scorer over the partial transcript. It weighs the last
words most: a full stop proves little, since a recogniser ends every pause with one.
"""

from __future__ import annotations

import math
import re
import unicodedata

from stepaudio.speech.roles import Samples

_HAN = re.compile(r"[\u3400-\u9fff]")
_TOKENS = re.compile(r"[\u3400-\u9fff]|[^\W_]+(?:['’][^\W_]+)*|@")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FILLERS = _words("um uh erm er uhm umm uhh hmm hm mm ah eh 嗯 呃 额 唔 啊 哦")
_BACKCHANNEL_WORDS = FILLERS | _words(
    """mhm mmhm uhhuh huh yeah yep yes ok okay right sure aha oh wow really nice cool great exactly
    true alright 对 好 行 是"""
)
_BACKCHANNEL_PHRASES = _words(
    "gotit isee iknow ofcourse makessense thatsright 是的 好的 明白 明白了 知道 知道了 没错 原来如此 是吗 是啊"
)
_HUM = re.compile(r"m*h*m+|(?:u+h+){2}|a+h+a+")
_HUM_SECONDS = 0.5
_INTERRUPTIONS = _words(
    """stop wait no not don't quiet enough cancel hold hang hey hello hi sorry pardon excuse but actually what who why
    how when where which never nope please 停 等 不 别 慢 够 错 什 谁 喂 哪 怎 取 没"""
)
_SHORT_ANSWERS = _words(
    """yes no yeah yep nope okay ok sure thanks thank please right correct exactly maybe never
    always hello hi hey bye goodbye stop cancel continue thankyou yesplease nothanks ofcourse
    ithinkso notreally 是 是的 不 不是 不用 对 好 好的 可以 行 没有 有 谢谢 你好 再见 不要
    当然 停 取消 继续 不用了 没问题"""
)
_OPEN_ENGLISH = FILLERS | _words(
    """and but or so because if when while although since unless until that which who whose than
    then a an the my your his her its our their this these those to of in on at by for from with
    about into over under between as is are was were am be been being do does did have has had
    will would can could should may might must not i'm you're it's that's what's there's i we
    they he she want need let's like just very really also maybe plus i'd i'll we'll i've"""
)
_OPEN_CHINESE = (
    *"和跟与或把被给在从向往比为让叫的地得就还也又再很太更最",
    *_words(
        """但是 可是 不过 因为 所以 如果 要是 然后 而且 或者 还有 比如 比如说 就是 那个 这个 我想 我要
    我觉得 请问 关于 除了 虽然 即使 只要 只有 以及 包括 号码是 电话是 邮箱是 地址是 艾特"""
    ),
)
_CLOSED_CHINESE = ("吗", "呢", "吧", "了", "呀", "嘛", "谢谢", "好的", "是的")
_DIGITS = _words("zero oh one two three four five six seven eight nine") | frozenset("零〇一二三四五六七八九幺")
_TENS = _words("ten eleven twelve twenty thirty forty fifty sixty seventy eighty ninety hundred thousand double")
_DICTATED = re.compile(
    r"\b(number|phone|call me at|code|card|account|zip|postcode|pin|reference)\b"
    r"|号码|电话|手机|卡号|账号|验证码|编号"
)
_MAIL = re.compile(r"\b(e-?mail|mail address)\b|邮箱|邮件")
_DOMAIN = re.compile(r"(\.|\bdot |点)\s*(com|org|net|edu|gov|io|co|uk|de|cn|ai|me|dev|app)\W*$")
_SIGNS = _words("dot @ underscore dash hyphen")
_SPELLED_DOT = re.compile(r"[a-z]\s*点\W*$")  # but not 几点, 慢一点
_BEFORE_LAST_DE = re.compile("是|谁|什么|怎|哪|几|有没有|多")  # 这是谁写的, 有没有深一点的


def tokens(text: str) -> list[str]:
    """Words in lower case without punctuation; each Chinese character is a word."""
    return _TOKENS.findall(unicodedata.normalize("NFKC", text).casefold().replace("’", "'"))


def same_request(before: str, after: str) -> bool:
    """Whether a reply to `before` is a reply to `after`: equal but for case, punctuation and fillers."""
    return _content(before) == _content(after)


def _content(text: str) -> list[str]:
    return [word for word in tokens(text) if word not in FILLERS]


def settled(partial: str) -> str:
    """What the rest of the turn will hardly change of a transcript that was cut off anywhere: all but its last word,
    or its last two Chinese characters."""
    found = list(_TOKENS.finditer(partial))
    if not found:
        return ""
    dropped = found[-2:] if _HAN.match(found[-1].group()) else found[-1:]
    return partial[: dropped[0].start()].rstrip()


def spoken_part(transcript: str) -> str:
    """The transcript without the punctuation that the recogniser has put at its end, as it does at every pause."""
    return transcript.rstrip(" .?!,;:…。？！，；：、")


def end_of_turn(ends_sentence: float) -> float:
    """A language model's probability that its next token ends the sentence, as a score of the end of the turn: what is
    a whole sentence may be a part of one. Fitted to sentences and their beginnings, as they are recognised
    (`benchmarks/turn_end.py`)."""
    probability = min(max(ends_sentence, 0.02), 0.98)  # words that were misheard end no sentence either
    odds: float = 0.8 * math.sqrt(probability / (1 - probability))
    return odds / (1 + odds)


def is_backchannel(text: str) -> bool:
    """Whether this only says "I am listening" ("mm-hm", "right", 嗯, 好的好的): at most four words, six Chinese
    characters, all of that kind."""
    said = tokens(text.replace("-", "").replace("'", ""))
    most = 6 if said and _HAN.match(said[0]) else 4
    return 0 < len(said) <= most and _murmurs([word for word in said if word not in FILLERS])


def _murmurs(said: list[str]) -> bool:
    """Whether the words are backchannels one after the other, each of one word or several."""
    return not said or any(_murmur("".join(said[:end])) and _murmurs(said[end:]) for end in range(1, len(said) + 1))


def _murmur(sound: str) -> bool:
    return sound in _BACKCHANNEL_WORDS or sound in _BACKCHANNEL_PHRASES or _HUM.fullmatch(sound) is not None


def is_question(text: str) -> bool:
    """Whether the text ends by asking something."""
    return text.rstrip(" \"'”’)）").endswith(("?", "？"))


def may_be_hum(text: str, seconds: float) -> bool:
    """Whether so little speech, heard as one or two words, may be a hum: recognisers hear a word in every "mm-hm"
    ("Mom.", "你"). What interrupts when it is said that shortly ("stop", "what", "等") is no hum."""
    said = tokens(text)
    return seconds < _HUM_SECONDS and len(said) <= 2 and _INTERRUPTIONS.isdisjoint(said)


class TextTurnScorer:
    """Probability that the turn is over, from the partial transcript alone. Fills the role `TurnScorer`."""

    rate = 16_000

    def score(self, samples: Samples | None, text: str | None, language: str | None) -> float | None:
        """None when there is no text to judge by. `samples` and `language` are not looked at."""
        said = tokens(text or "")
        if text is None or not said:
            return None
        content = _content(text)
        if "".join(content) in _SHORT_ANSWERS:
            return 0.95
        for judge in (_dictation, _unfinished):
            verdict = judge(text.casefold().strip(), said)
            if verdict is not None:
                return verdict
        return _finished(text.strip(), said)

    def close(self) -> None: ...


def _dictation(text: str, said: list[str]) -> float | None:
    """Numbers, e-mail addresses and spelled letters come in groups with pauses between them."""
    mail = _MAIL.search(text) is not None or "@" in said
    if said[-1] in _SIGNS or _SPELLED_DOT.search(text) or (mail and said[-1] in ("at", "点")):
        return 0.03
    if mail:
        if _DOMAIN.search(text):
            return 0.95
        spelled = "@" in said or " at " in text or text.rstrip(".?!,").endswith((" is", "是"))
        return 0.1 if spelled else None
    tail = _trailing_digits(said)
    if tail >= 2 or (tail and _DICTATED.search(text)):
        if tail >= 10:
            return 0.9
        if _DICTATED.search(text) or tail >= 3:
            return 0.6 if tail in (7, 8) else 0.12
    letters = 0
    for word in reversed(said):
        if len(word) != 1 or not word.isascii() or not word.isalpha():
            break
        letters += 1
    return 0.15 if letters >= 2 else None


def _trailing_digits(said: list[str]) -> int:
    """Digits at the end of the text, spoken or written ("five five 5 1 2" has five)."""
    count = 0
    for word in reversed(said):
        if word.isdecimal():
            count += len(word)
        elif word in _DIGITS:
            count += 1
        elif word not in _TENS:
            break
    return count


def _unfinished(text: str, said: list[str]) -> float | None:
    if text.endswith((",", "，", "、", "-", "—", "…", "...", ":", "：")):
        return 0.08
    if said[-1] in FILLERS - {"啊", "哦"}:
        return 0.08
    if text.endswith(("?", "？")):
        return None  # "what is this for?" ends with an open word, and is over
    if _HAN.fullmatch(said[-1]):
        bare = "".join(said)
        if bare.endswith("的") and _BEFORE_LAST_DE.search(bare):
            return None
        if bare.endswith(_OPEN_CHINESE) and not bare.endswith(_CLOSED_CHINESE):
            return 0.1
        return None
    return 0.08 if said[-1] in _OPEN_ENGLISH else None


def _finished(text: str, said: list[str]) -> float:
    bare = "".join(said)
    if text.endswith(("?", "？")) or bare.endswith(_CLOSED_CHINESE):
        return 0.85
    stopped = text.endswith((".", "!", "。", "！"))
    if len(said) <= 2:
        return 0.6 if stopped else 0.5
    return 0.8 if stopped else 0.65
