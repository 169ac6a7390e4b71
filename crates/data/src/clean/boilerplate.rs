//! Lines that belong to a web page and not to its text: notices, navigation, invitations.
//!
//! Two lists, each in both languages. A *notice* is a phrase that gives a short line away wherever it stands in it. A
//! *navigation word* is harmless inside a sentence and counts only when the line is made of nothing else. All phrases are
//! searched for at once, without regard to case, in one pass over the text (Aho and Corasick 1975); only a line with a
//! match is looked at more closely.

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

/// A line longer than this many characters is a sentence of the text, whatever phrase is in it.
const MAX_CHARACTERS: usize = 80;

/// A short line that contains one of these is removed.
pub const NOTICES: [&str; 50] = [
    // Rights and registration.
    "版权所有",
    "保留所有权利",
    "转载请注明",
    "未经许可不得转载",
    "未经授权不得转载",
    "未经允许不得转载",
    "本文来源：",
    "责任编辑：",
    "icp备",
    "icp证",
    "公网安备",
    "all rights reserved",
    "copyright ©",
    "copyright (c)",
    "© copyright",
    // Reading on.
    "点击查看更多",
    "点击展开",
    "点击阅读全文",
    "阅读全文>>",
    "continue reading →",
    "click here to read",
    "click here to view",
    "上一篇：",
    "下一篇：",
    // Sharing and subscribing.
    "分享到微信",
    "分享到朋友圈",
    "分享到微博",
    "扫描二维码关注",
    "扫一扫关注",
    "微信扫一扫",
    "长按识别二维码",
    "关注微信公众号",
    "关注我们的公众号",
    "share on facebook",
    "share on twitter",
    "share this article",
    "share via email",
    "subscribe to our newsletter",
    "sign up for our newsletter",
    "follow us on twitter",
    "follow us on facebook",
    // Cookies and scripts.
    "accept all cookies",
    "we use cookies",
    "this website uses cookies",
    "this site uses cookies",
    "本网站使用cookie",
    "enable javascript",
    "javascript is disabled",
    "请启用javascript",
    "powered by wordpress",
];

/// A line made of these alone, with separators between them, is removed.
pub const NAVIGATION: [&str; 52] = [
    "首页",
    "返回首页",
    "返回顶部",
    "网站首页",
    "网站地图",
    "联系我们",
    "关于我们",
    "加入收藏",
    "设为首页",
    "隐私政策",
    "用户协议",
    "免责声明",
    "帮助中心",
    "登录",
    "注册",
    "搜索",
    "分享",
    "收藏",
    "打印",
    "下一页",
    "上一页",
    "尾页",
    "阅读全文",
    "展开全文",
    "查看更多",
    "相关阅读",
    "猜你喜欢",
    "广告",
    "home",
    "about",
    "about us",
    "contact",
    "contact us",
    "privacy policy",
    "privacy",
    "terms of service",
    "terms of use",
    "terms",
    "cookie policy",
    "sitemap",
    "site map",
    "log in",
    "login",
    "sign in",
    "sign up",
    "register",
    "search",
    "read more",
    "skip to content",
    "skip to main content",
    "back to top",
    "advertisement",
];

/// Finds boilerplate lines.
#[derive(Debug)]
pub(super) struct Boilerplate {
    phrases: AhoCorasick,
}

impl Boilerplate {
    pub fn new() -> Boilerplate {
        let phrases = NOTICES.iter().chain(&NAVIGATION);
        let mut builder = AhoCorasick::builder();
        builder.ascii_case_insensitive(true).match_kind(MatchKind::LeftmostLongest).kind(Some(AhoCorasickKind::DFA));
        Boilerplate { phrases: builder.build(phrases).expect("a fixed list of short phrases") }
    }

    /// The starts of the lines to remove, in order.
    pub fn find(&self, text: &str) -> Vec<usize> {
        let mut found = Vec::new();
        let mut line_end = 0;
        for hit in self.phrases.find_iter(text) {
            let at = hit.start();
            if at < line_end {
                continue;
            }
            let start = memchr::memrchr(b'\n', &text.as_bytes()[..at]).map_or(0, |newline| newline + 1);
            let notice = hit.pattern().as_usize() < NOTICES.len();
            // A line made of navigation words begins with one.
            if !notice && !text[start..at].trim_start().chars().all(is_separator) {
                continue;
            }
            let end = memchr::memchr(b'\n', &text.as_bytes()[at..]).map_or(text.len(), |newline| at + newline);
            let line = text[start..end].trim();
            let short = line.len() <= 4 * MAX_CHARACTERS && line.chars().count() <= MAX_CHARACTERS;
            if short && (notice || is_navigation(&line.to_lowercase())) {
                found.push(start);
                line_end = end;
            }
        }
        found
    }
}

fn is_separator(c: char) -> bool {
    matches!(c, '|' | '｜' | '/' | '>' | '›' | '»' | '<' | '«' | '·' | '•' | '-' | '—' | '[' | ']' | ' ')
}

fn is_navigation(line: &str) -> bool {
    let between = |c: char| c != ' ' && is_separator(c);
    let mut words = line.split(between).map(str::trim).filter(|word| !word.is_empty());
    let known = |word: &str| {
        let word = word.trim_end_matches(['.', '…', '：', ':', '>', '»']).trim();
        NAVIGATION.contains(&word) || word.split_whitespace().all(|part| NAVIGATION.contains(&part)) && !word.is_empty()
    };
    words.next().is_some_and(known) && words.all(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removed(text: &str) -> Vec<&str> {
        let found = Boilerplate::new().find(text);
        found.into_iter().map(|at| text[at..].lines().next().unwrap()).collect()
    }

    #[test]
    fn notices_and_navigation_are_found() {
        for line in [
            "首页 > 新闻中心 | 联系我们".replace("新闻中心", "搜索").as_str(),
            "Home | About us | Contact",
            "登录 注册",
            "阅读全文...",
            "Copyright © 2023 某某公司 版权所有",
            "京ICP备12345678号-1",
            "责任编辑：王小明",
            "All Rights Reserved.",
            "We use cookies to give you the best experience.",
            "Advertisement",
            "Skip to main content",
        ] {
            assert_eq!(removed(&format!("before\n  {line}\nafter")), [format!("  {line}")], "{line}");
        }
    }

    #[test]
    fn sentences_are_left_alone() {
        for text in [
            "他登录网站以后，在首页上看到了那条消息。",
            "First: search the house, then come home.",
            "第一百二十条　未经授权，任何单位不得使用。",
            "The register of the church was lost in the fire.",
            "He was at home.",
            "home sweet home",
            "著作权法所称的版权即著作权。",
        ] {
            assert!(removed(text).is_empty(), "{text}");
        }
        let long = format!("We use cookies {}", "in this recipe because they are crisp ".repeat(4));
        assert!(removed(&long).is_empty());
    }

    #[test]
    fn the_lists_hold_lower_case_and_no_doubles() {
        let mut all: Vec<&str> = NOTICES.iter().chain(&NAVIGATION).copied().collect();
        assert!(all.iter().all(|phrase| *phrase == phrase.to_lowercase()));
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), NOTICES.len() + NAVIGATION.len());
    }
}
