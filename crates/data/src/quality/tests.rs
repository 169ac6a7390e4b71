use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

fn judge_as(text: &str, lang: Lang, rules: &Rules) -> Option<Rule> {
    Judge::new(rules).judge(text, lang, &Profile::new(text), 0.0)
}

#[track_caller]
fn removed(text: &str, lang: Lang, rule: Rule) {
    assert_eq!(judge_as(text, lang, &Rules::default()), Some(rule), "{text}");
    // The same text passes when only the other rules are there, so it is this rule's threshold that decides.
    assert_eq!(judge_as(text, lang, &Rules::keep_all()), None, "{text}");
}

#[track_caller]
fn kept(text: &str, lang: Lang) {
    assert_eq!(judge_as(text, lang, &Rules::default()), None, "{text}");
}

const PROSE: &str = "The whale rose slowly from the deep, and the men in the boats waited without a word for the order to \
                     pull. It was the hour before sunset, when the sea is the colour of old copper and every sound carries. ";
const ZH_PROSE: &str = "鲸鱼从深海里慢慢浮上来，船上的人一言不发地等着划桨的命令。那是日落前的一个钟头，海面泛着旧铜的颜色，什么声音都传得很远。";

#[test]
fn verse_law_and_scripture_are_kept() {
    for text in [
        "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。",
        "十六字令\n天，休使圆蟾照客眠。人何在，桂影自婵娟。",
        "采采芣苢，薄言采之。采采芣苢，薄言有之。\n采采芣苢，薄言掇之。采采芣苢，薄言捋之。\n采采芣苢，薄言袺之。采采芣苢，薄言襭之。",
        "第一条　为了保护民事主体的合法权益，调整民事关系，维护社会和经济秩序，根据宪法，制定本法。",
        "子曰：“学而时习之，不亦说乎？有朋自远方来，不亦乐乎？人不知而不愠，不亦君子乎？”",
        ZH_PROSE,
    ] {
        kept(text, Lang::Zh);
    }
    kept("Jesus wept. The Jews therefore said, \"See how much affection he had for him!\"", Lang::En);
    kept(
        "Praise Yah! Praise, you servants of Yahweh, praise Yahweh's name. Blessed be Yahweh's name, forever.",
        Lang::En,
    );
    kept(PROSE, Lang::En);
}

#[test]
fn too_short() {
    removed("你好，世界。", Lang::Zh, Rule::TooShort);
    removed("Hello there, world.", Lang::En, Rule::TooShort);
}

#[test]
fn replacement_characters() {
    removed(&format!("{ZH_PROSE}\u{fffd}\u{fffd}"), Lang::Zh, Rule::ReplacementCharacters);
    removed(&format!("{PROSE}\u{fffd}\u{fffd}"), Lang::En, Rule::ReplacementCharacters);
    kept(&format!("{}\u{fffd}", unlike(2000)), Lang::En);
}

#[test]
fn control_characters() {
    for (text, lang) in [(ZH_PROSE, Lang::Zh), (PROSE, Lang::En)] {
        let mut judge = Judge::new(&Rules::default());
        assert_eq!(judge.judge(text, lang, &Profile::new(text), 0.02), Some(Rule::ControlCharacters));
        assert_eq!(judge.judge(text, lang, &Profile::new(text), 0.001), None);
    }
}

#[test]
fn few_letters() {
    let table = "2024 1,234.5 2,345.6 3,456.7 4,567.8\n".repeat(5);
    removed(&format!("各地区上半年工业总产值与增长速度统计表\n{table}"), Lang::Zh, Rule::FewLetters);
    removed(&format!("total output of all the regions in the first half year\n{table}"), Lang::En, Rule::FewLetters);
}

#[test]
fn symbols() {
    removed(&"好看★好听★".repeat(10), Lang::Zh, Rule::Symbols);
    removed(&"wonderful ## things @ ".repeat(8), Lang::En, Rule::Symbols);
}

#[test]
fn word_lengths() {
    removed(&"a b c d e f g h i j k l ".repeat(2), Lang::En, Rule::WordLength);
    let words = "counterrevolutionaries misunderstandings internationalization ";
    removed(&words.repeat(5), Lang::En, Rule::WordLength);
    // Chinese has no word length: the rule leaves it alone.
    kept("甲 a 乙 b 丙 c 丁 d 戊 e 己 f 庚 g 辛 h 壬 i 癸 j 子 k 丑 l 寅 m 卯 n 辰 o 巳 p", Lang::Zh);
    let key = "QmFzZTY0IGVuY29kZWQgZGF0YSBpcyBub3QgdGV4dA0aB1cD2eF3gH4iJ5kL6mN7";
    removed(&format!("{}{}", "下面是一段编码之后的数据，不是文章。", key.repeat(3)), Lang::Zh, Rule::OverlongWords);
    removed(&format!("what follows is some encoded data that is not a text {key}"), Lang::En, Rule::OverlongWords);
}

#[test]
fn function_words() {
    let list: String = (0..60).map(|i| ["cheap ", "shoes ", "online ", "store "][i * i % 4]).collect();
    assert_eq!(
        judge_as(&list, Lang::En, &Rules { repetition_min_units: 500, ..Rules::default() }),
        Some(Rule::FewFunctionWords)
    );
    kept(&unlike(100), Lang::En);
}

#[test]
fn bullets_and_ellipses() {
    let zh: String =
        (0..6).map(|i| format!("- 第{}项是这样的一件事情\n", "一二三四五六".chars().nth(i).unwrap())).collect();
    removed(&zh, Lang::Zh, Rule::BulletLines);
    let en: String =
        ["one", "two", "three", "four", "five"].map(|n| format!("• item number {n} of the list\n")).concat();
    removed(&en, Lang::En, Rule::BulletLines);
    let zh: String = ["春天", "夏天", "秋天", "冬天"].map(|n| format!("{n}的故事说的是从前……\n")).concat();
    removed(&zh, Lang::Zh, Rule::EllipsisLines);
    let en: String = ["one", "two", "three", "four"].map(|n| format!("the story of the {n} goes...\n")).concat();
    removed(&en, Lang::En, Rule::EllipsisLines);
}

#[test]
fn placeholder_text() {
    removed(&format!("{PROSE}Lorem ipsum dolor sit amet"), Lang::En, Rule::Placeholder);
    removed(&format!("{ZH_PROSE}Lorem ipsum"), Lang::Zh, Rule::Placeholder);
    kept(&format!("{PROSE}ipsum"), Lang::En);
}

/// Text of `n` words in which nothing is repeated.
fn unlike(n: usize) -> String {
    (0..n)
        .map(|i| format!("the w{} of", i.wrapping_mul(0x9e37_79b9) % 1_000_003))
        .map(letters)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Digits to letters, so that the words count as words.
fn letters(text: String) -> String {
    text.chars().map(|c| c.to_digit(10).map_or(c, |d| char::from(b'a' + d as u8))).collect()
}

/// Chinese text of `n` characters in which nothing is repeated.
fn zh_unlike(n: u32, seed: u32) -> String {
    let hash = |i: u32| crate::profile::mix(u64::from(i) << 32 | u64::from(seed)) as u32;
    (0..n).map(|i| char::from_u32(0x4e00 + hash(i) % 5000).unwrap()).collect()
}

#[test]
fn repeated_lines_and_paragraphs() {
    let lines = |line: &str, other: String| format!("{}{other}", format!("{line}\n").repeat(10));
    removed(&lines("点一下这里查看更多精彩内容", zh_unlike(300, 1)), Lang::Zh, Rule::RepeatedLines);
    removed(&lines("look at this for more of the same", unlike(120)), Lang::En, Rule::RepeatedLines);
    // Too short for repetition to count.
    kept(&"点一下这里查看更多精彩内容\n".repeat(10), Lang::Zh);
    let paragraphs = |a: &str, lines: &dyn Fn(usize) -> String| {
        (0..6).map(|i| format!("{a}\n\n{}\n\n", lines(i))).collect::<String>()
    };
    let zh = paragraphs("同上", &|i| zh_unlike(100, i as u32));
    let rules = Rules { max_repeated_line_share: 1.0, ..Rules::default() };
    assert_eq!(judge_as(&zh, Lang::Zh, &rules), Some(Rule::RepeatedParagraphs));
    let en = paragraphs("and so on", &|i| letters(format!("{PROSE} {i} {PROSE}")));
    let rules = Rules { max_repeated_line_share: 1.0, ..Rules::default() };
    assert_eq!(judge_as(&en, Lang::En, &rules), Some(Rule::RepeatedParagraphs));
}

#[test]
fn phrases() {
    let mixed: String = (0..50).map(|i| format!("买二手房上链家{}", zh_unlike(5, i))).collect();
    removed(&mixed, Lang::Zh, Rule::TopPhrase);
    let mixed: String = (0..100).map(|i| letters(format!("buy the shoes x{i} or y{i} ")).to_string()).collect();
    removed(&mixed, Lang::En, Rule::TopPhrase);
    let repeated = format!("{}{}", zh_unlike(300, 1).repeat(3), zh_unlike(100, 2));
    removed(&repeated, Lang::Zh, Rule::RepeatedPhrases);
    let repeated = format!("{} ", unlike(100)).repeat(3);
    removed(&repeated, Lang::En, Rule::RepeatedPhrases);
    kept(&zh_unlike(3000, 3), Lang::Zh);
}

#[test]
fn names_are_those_of_serde_and_complete() {
    for (i, rule) in Rule::ALL.into_iter().enumerate() {
        assert_eq!(serde_json::to_string(&rule).unwrap(), format!("\"{}\"", rule.name()));
        assert_eq!(rule as usize, i);
    }
    assert!(serde_json::from_str::<Rules>("{\"min_hann\": 3}").is_err());
    assert_eq!(serde_json::from_str::<Rules>("{}").unwrap(), Rules::default());
}

proptest! {
    #[test]
    fn any_text_can_be_judged(text in "\\PC{0,200}", lang in 0u8..3) {
        let lang = Lang::from_u8(lang).unwrap();
        judge_as(&text, lang, &Rules { repetition_min_units: 0, ..Rules::default() });
    }

    #[test]
    fn the_table_counts(hashes in proptest::collection::vec(0u64..300, 0..2000)) {
        let mut table = Table::default();
        table.clear(10);
        let mut counts: HashMap<u64, u32> = HashMap::new();
        for hash in hashes {
            let count = counts.entry(hash).or_default();
            *count += 1;
            prop_assert_eq!(table.count(hash), *count);
        }
    }

    #[test]
    fn ngram_hashes_depend_on_the_ngram_alone(units in proptest::collection::vec(any::<u64>(), 5..40)) {
        let mut rolled = Vec::new();
        ngrams(&units, 5, |hash| rolled.push(hash));
        let mut fresh = Vec::new();
        units.windows(5).for_each(|window| ngrams(window, 5, |hash| fresh.push(hash)));
        prop_assert_eq!(rolled, fresh);
    }
}
