"""Whatever the script: the same faults are found, and nothing else."""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino_pipeline.examples import Example
from dino_pipeline.filter_options import FilterOptions
from dino_pipeline.filtering.dataset_rules import FilterRuntime
from dino_pipeline.filtering.text_rules import PromptParts, text_rules
from dino_pipeline.minhash import ngram_hashes, ngrams
from dino_pipeline.text import count_symbols, count_words, is_inside_word, joined, normalise, units, word_overlap
from tests.pairs import RAW, dropped, filtered


@dataclass
class Language:
    """Words of a language, and how its sentences are written."""

    words: list[str]
    blank: str
    comma: str
    stop: str
    random: random.Random = field(default_factory=lambda: random.Random(3))

    def sentence(self, least: int = 12, most: int = 16) -> list[str]:
        """Return the words of a sentence that repeats none, with a number."""
        words = self.random.sample(self.words, self.random.randint(least, most))
        words.insert(self.random.randrange(1, len(words)), str(self.random.randint(1000, 9999)))
        return words

    def written(self, words: list[str]) -> str:
        return self.blank.join(words) + self.stop


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(text.split()))


LANGUAGES = {
    "English": Language(
        _words(
            "river mountain teacher yesterday children garden window slowly kitchen evening brother "
            "travels market winter bicycle letter music doctor village bridge forest station morning "
            "coffee summer friend library writes answer quietly island picture weather camera ticket "
            "holiday flower silver engine harbour student football newspaper medicine umbrella carpet "
            "festival neighbour purple breakfast"
        ),
        " ",
        ",",
        ".",
    ),
    "German": Language(
        _words(
            "Fluss Gebirge Lehrerin gestern Kinder Gärten Fenster langsam Küche Abend Brüder reisen "
            "Märkte Winter Fahrrad Brief Musik Ärztin Dorf Brücke Wälder Bahnhof Morgen Kaffee Sommer "
            "Freunde Bücherei schreiben Antwort größer Insel Gemälde Wetter Kamera Fahrkarte Urlaub "
            "Blüten silbern Maschine Häfen Schüler Fußball Zeitung Arznei Regenschirm Teppich Feste "
            "Nachbarin lila Frühstück"
        ),
        " ",
        ",",
        ".",
    ),
    "Chinese": Language(
        _words(
            "河流 山脉 老师 昨天 孩子 花园 窗户 慢慢 厨房 晚上 兄弟 旅行 市场 冬天 自行车 信件 音乐 "
            "医生 村庄 桥梁 森林 车站 早晨 咖啡 夏天 朋友 图书馆 书写 回答 安静 岛屿 照片 天气 相机 "
            "门票 假期 鲜花 银色 发动机 港口 学生 足球 报纸 药品 雨伞 地毯 节日 邻居 紫色 早餐"
        ),
        "",
        "，",
        "。",
    ),
    "Japanese": Language(
        _words(
            "川が 山脈を 先生は 昨日の 子供たち 庭園で 窓から ゆっくり 台所に 夕方 兄弟と 旅行する "
            "市場へ 冬の 自転車 手紙を 音楽が 医者は 村の 橋を 森林に 駅まで 朝から コーヒー 夏休み "
            "友達と 図書館 書いた 答えは 静かな 島々の 写真を 天気が カメラ 切符を 休日に 花束を 銀色の "
            "エンジン 港町へ 学生が サッカー 新聞を 薬局で 雨傘を じゅうたん 祭りの 隣人は 紫色 朝食を"
        ),
        "",
        "、",
        "。",
    ),
    "Hindi": Language(
        _words(
            "नदी पहाड़ शिक्षक कल बच्चे बगीचा खिड़की धीरे रसोई शाम भाई यात्रा बाज़ार सर्दी साइकिल चिट्ठी "
            "संगीत डॉक्टर गाँव पुल जंगल स्टेशन सुबह कॉफ़ी गर्मी दोस्त पुस्तकालय लिखना उत्तर चुपचाप "
            "द्वीप तस्वीर मौसम कैमरा टिकट छुट्टी फूल चाँदी इंजन बंदरगाह विद्यार्थी फुटबॉल अख़बार दवाई "
            "छाता कालीन त्योहार पड़ोसी बैंगनी नाश्ता"
        ),
        " ",
        ",",
        "।",
    ),
    "Arabic": Language(
        _words(
            "النهر الجبال المعلم أمس الأطفال الحديقة النافذة ببطء المطبخ المساء الأخ يسافر السوق الشتاء "
            "الدراجة الرسالة الموسيقى الطبيب القرية الجسر الغابة المحطة الصباح القهوة الصيف الصديق "
            "المكتبة يكتب الجواب بهدوء الجزيرة الصورة الطقس الكاميرا التذكرة العطلة الزهرة الفضة المحرك "
            "الميناء الطالب الكرة الجريدة الدواء المظلة السجادة المهرجان الجار البنفسجي الفطور"
        ),
        " ",
        "،",
        "؟",
    ),
    "Thai": Language(
        _words(
            "แม่น้ำ ภูเขา คุณครู เมื่อวาน เด็กๆ สวนดอกไม้ หน้าต่าง ช้าๆ ห้องครัว ตอนเย็น พี่ชาย เดินทาง "
            "ตลาด ฤดูหนาว จักรยาน จดหมาย ดนตรี คุณหมอ หมู่บ้าน สะพาน ป่าไม้ สถานี ตอนเช้า กาแฟ ฤดูร้อน "
            "เพื่อน ห้องสมุด เขียน คำตอบ เงียบ เกาะ รูปภาพ อากาศ กล้อง ตั๋ว วันหยุด ดอกไม้ สีเงิน "
            "เครื่องยนต์ ท่าเรือ นักเรียน ฟุตบอล หนังสือพิมพ์ ยา ร่ม พรม เทศกาล เพื่อนบ้าน สีม่วง "
            "อาหารเช้า"
        ),
        "",
        " ",
        "",
    ),
    "Korean": Language(
        _words(
            "강물이 산맥을 선생님은 어제 아이들 정원에서 창문 천천히 부엌에 저녁 형제와 여행하는 "
            "시장으로 겨울 자전거 편지를 음악이 의사는 마을 다리를 숲에서 역까지 아침부터 커피 여름 "
            "친구와 도서관 썼다 대답은 조용한 섬의 사진을 날씨가 카메라 표를 휴일에 꽃다발 은색 엔진 "
            "항구로 학생이 축구 신문을 약국에서 우산을 양탄자 축제 이웃은 보라색 식사를"
        ),
        " ",
        ",",
        ".",
    ),
}


def _with_commas(language: Language, words: list[str]) -> str:
    marked = [word + (f"{language.comma} " if at % 3 == 1 else language.blank) for at, word in enumerate(words[:-1])]
    return "「" + "".join(marked) + words[-1] + "」!"


def _wide(language: Language, words: list[str]) -> str:
    """Write Latin letters, digits and signs in the width of ideographs."""
    letters = language.written(words)
    return "".join(chr(ord(letter) + 0xFEE0) if "!" <= letter <= "~" else letter for letter in letters)


def _invisible(language: Language, words: list[str]) -> str:
    """Put a soft hyphen, joiner or mark of direction into each word."""
    marks = "\u00ad\u200d\u200c\u2060\u200f"
    return language.written([f"{word[:1]}{marks[at % 5]}{word[1:]}" for at, word in enumerate(words)])


EDITS: dict[str, Callable[[Language, list[str]], str]] = {
    "punctuation": _with_commas,
    "width": _wide,
    "invisible": _invisible,
    "decomposed": lambda language, words: unicodedata.normalize("NFD", language.written(words)),
    "case": lambda language, words: language.written(words).upper(),
    "whitespace": lambda language, words: "  " + "\u3000".join(words) + "\n",
}
"""Other ways to write the same words."""


def one_word_swapped(language: Language, words: list[str]) -> str:
    changed = list(words)
    at = language.random.randrange(len(words))
    changed[at] = language.random.choice([word for word in language.words if word not in words])
    return language.written(changed)


@pytest.fixture(params=LANGUAGES)
def language(request: pytest.FixtureRequest) -> Language:
    chosen = LANGUAGES[request.param]
    chosen.random.seed(3)
    return chosen


COUNT = 30


def test_planted_faults_are_found_in_every_language_and_nothing_else(tmp_path: Path, language: Language) -> None:
    examples: list[Example] = []
    expected: dict[tuple[str, str], str] = {}

    def other() -> str:
        return language.written(language.sentence())

    def plant(text_a: str, text_b: str, label: float, reason: str = "") -> None:
        examples.append(Example(text_a, text_b, label, input=len(examples)))
        if reason:
            expected[text_a, text_b] = reason

    for edit in EDITS.values():
        for _ in range(COUNT // len(EDITS)):
            words, second, torn = language.sentence(), language.sentence(), language.sentence()
            plant(language.written(words), edit(language, words), 1.0, "identical texts")
            plant(edit(language, words), language.written(words), 0.0, "identical texts")
            text_a, pair = other(), (language.written(second), edit(language, second))
            plant(text_a, pair[0], 1.0)
            if pair[0] != pair[1]:
                plant(text_a, pair[1], 1.0, "duplicate")
            for label, version in zip((1.0, 0.0), (language.written(torn), edit(language, torn)), strict=True):
                examples.append(Example(text_a, version, label, input=len(examples)))
                expected[text_a, version] = "conflicting labels"
    clean = [(other(), other()) for _ in range(10 * COUNT)]
    for at, pair in enumerate(clean):
        plant(*pair, at % 3 / 2)
    without = (*RAW.without, "control characters")
    run = filtered(tmp_path, examples, RAW.model_copy(update={"without": without, "near_duplicates": 0.8}))
    found = {(row["text_a"], row["text_b"]): row["reason"] for row in dropped(run)}
    assert found == expected


def test_near_duplicates_of_long_texts_are_found_in_every_language(tmp_path: Path, language: Language) -> None:
    examples, copies = [], []
    for number in range(200):
        words = language.sentence(26, 30)
        examples.append(Example(language.written(words), f"text {number}", 1.0, input=number))
        copies.append(Example(one_word_swapped(language, words), f"copy {number}", 1.0, input=1000 + number))
    run = filtered(tmp_path, examples + copies, RAW.model_copy(update={"near_duplicates": 0.8}))
    gone = {row["text_a"]: row["reason"] for row in dropped(run)}
    found = sum(gone.get(copy.text_a) == "near-duplicate input" for copy in copies)
    assert found >= 0.98 * len(copies)
    assert len(gone) == found


def test_evaluation_data_is_found_in_every_language(tmp_path: Path, language: Language) -> None:
    gold = [language.sentence(26, 30) for _ in range(40)]
    (tmp_path / "gold.jsonl").write_text("".join(json.dumps({"s": language.written(words)}) + "\n" for words in gold))
    leaked = []
    for words in gold:
        leaked += [edit(language, words) for edit in EDITS.values()]
        leaked.append(one_word_swapped(language, words))
        around = [language.sentence() for _ in range(2)]
        leaked.append(language.written(around[0] + words[4:22] + around[1]))  # a part of it
    clean = [language.written(language.sentence()) for _ in range(300)]
    examples = [Example(text, f"text {number}", 0.5) for number, text in enumerate(leaked + clean)]
    runtime = FilterRuntime(excluded=(str(tmp_path / "gold.jsonl"),))
    options = RAW.model_copy(update={"near_duplicates": 0.8, "exclude": ("gold.jsonl",)})
    run = filtered(tmp_path, examples, options, runtime)
    gone = {row["text_a"] for row in dropped(run) if row["reason"] == "in evaluation data"}
    missed = [text for text in leaked if text not in gone]
    assert len(missed) <= 0.01 * len(leaked), missed
    assert not gone & set(clean)


def test_pairs_that_differ_in_a_word_of_a_sentence_are_near_copies(language: Language) -> None:
    check = next(rule.check for rule in text_rules(FilterOptions(), PromptParts()) if rule.name == "near-copy")
    short = [word for word in language.words if count_words(word) == 1]
    copies = 0
    for _ in range(20):
        words = language.random.sample(short, 7)
        changed = [*words[:3], language.random.choice([word for word in short if word not in words]), *words[4:]]
        copies += check(Example(language.written(words), language.written(changed))) is not None
        assert check(Example(language.written(words), language.written(words[::-1]))) is None
        assert check(Example(language.written(words), language.written([*changed[:1], *changed[3:]]))) is None
    assert copies == 20


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("我喜欢狗，你呢？", "我喜欢狗你呢"),
        ("「你好」，《世 界》！", "你好世界"),
        ("我用 Python 3、写 1,000 行。", "我用python 3写1 000行"),
        ("iPhone 15 Pro、值得买吗", "iphone 15 pro值得买吗"),
        ("人々は、コーヒー・紅茶を", "人々はコーヒー紅茶を"),
        ("ｶﾞﾗｽ　ＡＢＣ", "ガラスabc"),
        ("나는 학교에, 간다!", "나는 학교에 간다"),
        ("ฉันรัก แมว  มาก ๆ", "ฉันรักแมวมากๆ"),
        ("ភាសា\u200bខ្មែរ។", "ភាសាខ្មែរ"),
        ("मैं हिंदी में पढ़ता हूँ।", "मैं हिंदी में पढ़ता हूँ"),
        ("क\u094d\u200dष", "क\u094dष"),
        ("مُحَمَّدٌ، كـــتاب؟", "محمد كتاب"),
        ("می\u200cخواهم", "میخواهم"),
        ('שָׁלוֹם צה"ל', "שלום צה ל"),
        ("Tie\u0302\u0301ng Việt", "tiếng việt"),
        ("A\u0308rger, STRASSE", "ärger strasse"),
        ("Donau\u00addampfer", "donaudampfer"),
        ("Geht´s gut?", "geht s gut"),
        ("İSTANBUL ILIK ılık", "istanbul ilik ilik"),
        ("ΟΔΟΣ οδός", "οδοσ οδόσ"),
        ("Ｆｕｌｌ　ｗｉｄｔｈ！", "full width"),
        ("👨\u200d👩\u200d👧 ❤\ufe0f", "👨👩👧 ❤"),
        ("。。。", "。。。"),
        ("؟!", "؟!"),
        ("\u200d\u00ad", ""),
    ],
)
def test_normal_forms_of_all_scripts(text: str, normal: str) -> None:
    assert normalise(text) == normal
    assert normalise(normal) == normal


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("दिन", "दान"),  # vowel signs
        ("ไม่", "ไม้"),  # tone marks
        ("か", "が"),
        ("ビル", "ビール"),
        ("人人", "人々"),
        ("schön", "schon"),
        ("má", "mà"),
        ("אב", "אם"),
        ("كتب", "كتاب"),
        ("12 3", "1 23"),
        ("😀", "😢"),
    ],
)
def test_what_makes_another_word_stays(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)


def test_units_are_words_or_letters_with_their_marks() -> None:
    assert units("我用python写3个") == ["我", "用", "python", "写", "3", "个"]
    assert units("ที่นี่ abc") == ["ที่", "นี่", "abc"]
    assert units("나는 간다") == ["나는", "간다"]
    assert [count_words(text) for text in ("Well, it's me.", "我喜欢，狗。", "好", "แม่น้ำ", "")] == [3, 2, 1, 1, 0]
    assert word_overlap("我喜欢狗。", "我，喜欢猫") == pytest.approx(3 / 5)
    assert [count_symbols(text) for text in ("مُحَمَّدٌ!", "हूँ।", "☃ ok ♥\ufe0f", "「」你")] == [1, 1, 2, 2]


def test_words_end_where_a_reader_sees_it() -> None:
    text = "It's 我们 हिन्दी."
    assert [place for place in range(len(text) + 1) if is_inside_word(text, place)] == [1, 9, 10, 11, 12, 13]


pieces = [
    "a",
    "Zß",
    " ",
    "1",
    ".",
    "我",
    "々",
    "ー",
    "か\u3099",
    "คี่",
    "น",
    "나",
    "हि",
    "म\u0651",
    "e\u0301",
    "，",
    "😀",
]
mixed = st.lists(st.sampled_from([*pieces, "か\u3099", "\u200d", "\u3000"]), max_size=20).map("".join)


@given(mixed, st.lists(mixed, max_size=4))
def test_normal_forms_are_stable_and_units_whole(text: str, others: list[str]) -> None:
    normal = normalise(text)
    assert normalise(normal) == normal
    assert "".join(units(normal)) == normal.replace(" ", "")
    if any(map(str.isalpha, normal)):
        assert joined(units(normal)) == normal
    texts = [normal, *map(normalise, others)]
    hashes, offsets = ngram_hashes(texts)
    for at, each in enumerate(texts):
        assert len(np.unique(hashes[offsets[at] : offsets[at + 1]])) == len(ngrams(each))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("مُحَمَّدٌ رَسُولُ اللَّهِ", None),
        ("ភាសា\u200bខ្មែរ\u200bល្អ", None),
        ('דובר צה"ל הודיע היום', None),
        ("今天天气很好《北京", "unfinished"),
        ("今天天气很好《北京》。", None),
        ("ذهبت إلى السوق،", "unfinished"),
        ("我喜欢狗，我喜欢狗。我喜欢狗", "repetition"),
        ("ฉันรักแมวฉันรักแมวฉันรักแมว", "repetition"),
        ("เร็วเร็วเร็ว เข้าเถอะ", None),
        ("。。。！？", "not text"),
    ],
)
def test_rules_about_single_texts_know_other_scripts(text: str, reason: str | None) -> None:
    found = (rule.check(Example(text, None, 1.0)) for rule in text_rules(FilterOptions(), PromptParts()))
    assert (next(filter(None, found), "").partition(": ")[0] or None) == reason
