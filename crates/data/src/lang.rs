//! The language of a document: Chinese, English, or neither.
//!
//! Two thirds of the question are answered by script. Han characters without kana or hangul beside them are Chinese,
//! simplified, traditional or classical: statistical detectors trained on modern prose call a Tang poem Japanese. For the
//! Latin script, a high share of English function words settles most documents at no cost; the rest go to `whatlang`
//! (trigram statistics over 70 languages).
//!
//! A Chinese page about programming is half English words and is still Chinese, so the bar for Han is one third of the
//! units (see [`crate::profile`]), not one half.

use whatlang::Lang as Detected;

use crate::document::Lang;
use crate::profile::Profile;

/// At least this share of units must be Han characters for Chinese.
const HAN_SHARE: f64 = 1.0 / 3.0;
/// More kana or hangul than this share of all East Asian characters is Japanese or Korean: a Chinese text that quotes a
/// Japanese name stays below, Japanese prose is above 40 %.
const KANA_SHARE: f64 = 0.1;
/// From this share of function words on, Latin text is English (running English has 20–35 %, other languages below 8 %).
const FUNCTION_SHARE: f64 = 0.15;
/// Below this share, a text of at least [`ENOUGH_WORDS`] is not called English whatever the trigrams say.
const LEAST_FUNCTION_SHARE: f64 = 0.04;
/// From this many words on, the share of function words is more than chance.
const ENOUGH_WORDS: usize = 30;
/// How much of a text the trigram detector sees (bytes).
const SAMPLE: usize = 4096;

/// The language of a text, given its counts.
pub fn detect(text: &str, profile: &Profile) -> Lang {
    let foreign = profile.kana + profile.hangul;
    let east_asian = profile.han + foreign;
    let units = profile.han + profile.words;
    if profile.letters() == 0 {
        return Lang::Other;
    }
    if foreign as f64 > KANA_SHARE * east_asian as f64 && east_asian * 4 > profile.letters() {
        return Lang::Other;
    }
    if profile.han as f64 >= HAN_SHARE * units as f64 {
        return Lang::Zh;
    }
    if (profile.latin as f64) < 0.8 * (profile.letters() - profile.han) as f64 {
        return Lang::Other;
    }
    let function = profile.function_words as f64 / profile.words.max(1) as f64;
    if function >= FUNCTION_SHARE {
        return Lang::En;
    }
    if profile.words >= ENOUGH_WORDS && function < LEAST_FUNCTION_SHARE {
        return Lang::Other;
    }
    let mut end = text.len().min(SAMPLE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    match whatlang::detect_lang(&text[..end]) {
        Some(Detected::Eng) => Lang::En,
        _ => Lang::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, lang: Lang) {
        assert_eq!(detect(text, &Profile::new(text)), lang, "{text}");
    }

    #[test]
    fn chinese_of_every_kind() {
        check("床前明月光，疑是地上霜。举头望明月，低头思故乡。", Lang::Zh);
        check("床前明月光，疑是地上霜。舉頭望明月，低頭思故鄉。", Lang::Zh);
        check("第一条　为了保护民事主体的合法权益，调整民事关系，根据宪法，制定本法。", Lang::Zh);
        check("子曰：学而时习之，不亦说乎？", Lang::Zh);
        check(
            "FastAPI 是一个用于构建 API 的现代、快速（高性能）的 web 框架，使用 Python 并基于标准的类型提示。",
            Lang::Zh,
        );
        check(
            "他喜欢听“ありがとう”这首歌，每天都要听上好几遍才肯去睡觉，真是没有办法的事情啊。家里人也只好由着他，谁让他是最小的孩子，大家都疼他呢。",
            Lang::Zh,
        );
    }

    #[test]
    fn english_of_every_kind() {
        check("Call me Ishmael. Some years ago—never mind how long precisely—having little or no money.", Lang::En);
        check("In the beginning God created the heavens and the earth. Now the earth was formless.", Lang::En);
        check("Learn Chinese: the word 你好 means hello, and it is used to greet people of all ages.", Lang::En);
    }

    #[test]
    fn other_languages() {
        for text in [
            "昔々、あるところに、おじいさんとおばあさんが住んでいました。おじいさんは山へ芝刈りに行きました。",
            "대한민국은 민주공화국이다. 대한민국의 주권은 국민에게 있고, 모든 권력은 국민으로부터 나온다.",
            "Все люди рождаются свободными и равными в своем достоинстве и правах.",
            "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison.",
            "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft begabt.",
            "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón.",
            "Alle mensen worden vrij en gelijk in waardigheid en rechten geboren. Zij zijn begiftigd met verstand.",
            "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền lợi.",
            "Semua orang dilahirkan merdeka dan mempunyai martabat dan hak-hak yang sama.",
            "1234567890 !!! ??? 42",
            "",
        ] {
            check(text, Lang::Other);
        }
    }
}
