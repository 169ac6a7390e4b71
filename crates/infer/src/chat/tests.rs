use super::*;

fn chat(text: &str) -> Chat {
    let message = Value::from_pairs([("role", "user"), ("content", text)]);
    Chat { messages: vec![message], ..Chat::default() }
}

fn render(template: &str) -> Result<String, ChatError> {
    ChatTemplate::parse(template, BTreeMap::new())?.render(&chat("hello"))
}

#[test]
fn a_stranger_s_template_can_waste_neither_time_nor_memory() {
    let fails = |template: &str| {
        let error = render(template).unwrap_err();
        assert!(matches!(error, ChatError::Render(_)), "{template}: {error}");
    };
    fails("{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}");
    fails(
        "{% set ns = namespace(x='aaaaaaaaaaaaaaaa') %}{% for a in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    );
    fails("{{ 'a' * 1000000000 }}{{ 'a' * 1000000000 }}");
    fails("{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}");
    fails("{{ messages[0].content.nothing.more }}");
    fails("{{ undefined_thing | tojson }}");
    for format in [
        "'%.70000e' | format(3)",
        "'%(a)70000d' | format(a=3)",
        "'%%%-#70000.2f' | format(3)",
        "'{:70000}'.format(3)",
        "'{:>70000}'.format('a')",
        "'{:}<70000}'.format('a')",
        "'{a[0]:{^+#070000_.3f}'.format(a=[1])",
        "'{:.70000e}'.format(3)",
        "'%%%(名)s' | format(a=3)",
        "'%(%%名)s' | format(a=3)",
        "'{a[名]}'.format(a={'名': 1})",
        "'{{}}{0.a[x][}名]}'.format({'x': 1})",
        "'{a[{名'.format(a=1)",
        "'{:99999999999999999999999}'.format(3)",
    ] {
        fails(&format!("{{{{ {format} }}}}"));
    }
    // In time that grows with the format's length, and no faster.
    for part in ["{a", "{[", "{:<", "{:9:"] {
        fails(&format!("{{{{ ('{part}' * 250000).format(1) }}}}"));
    }
    for part in ["%(", "%5", "%-"] {
        fails(&format!("{{{{ ('{part}' * 250000) | format(1) }}}}"));
    }
    let deep = format!("{}1{}", "(".repeat(30_000), ")".repeat(30_000));
    assert!(matches!(render(&format!("{{{{ {deep} }}}}")), Err(ChatError::Malformed { .. })));
    let long = "x".repeat(MAX_TEMPLATE as usize + 1);
    assert!(matches!(render(&long), Err(ChatError::TooLarge { .. })));
    for wrong in ["{% if %}", "{% include 'default' %}", "{% import 'default' as d %}"] {
        assert!(matches!(render(wrong), Err(ChatError::Malformed { .. })), "{wrong}");
    }
}

#[test]
fn formats_are_those_of_python() {
    for (format, text) in [
        ("'%-6s|%05.1f %(x)s' | format('a', 2.25)", None),
        ("'%-6s|%05.1f%%' | format('a', 2.25)", Some("a     |002.2%")),
        ("'{:>6}|{:_^8}|{:,}'.format('a', 'b', 1234567)", Some("     a|___b____|1,234,567")),
        ("'100%%(约) %s' | format(1)", Some("100%(约) 1")),
        ("'[名] {{a[名]}} {a[x]}'.format(a={'x': '名'})", Some("[名] {a[名]} 名")),
        ("'{}: 20261128 {:02d} (70000 d)'.format('day', 3)", Some("day: 20261128 03 (70000 d)")),
    ] {
        assert_eq!(render(&format!("{{{{ {format} }}}}")).ok().as_deref(), text, "{format}");
    }
}

/// What a namespace keeps grows neither without end nor into itself, and macros alone make nothing that is too deep.
#[test]
fn a_stranger_s_template_cannot_exhaust_the_stack() {
    let grow = |step: &str, times: usize| {
        render(&format!(
            "{{% set ns = namespace(x=[], y=1) %}}{{% for i in range({times}) %}}{step}{{% endfor %}}{{{{ ns.x }}}}"
        ))
    };
    for step in [
        "{% set ns.x = [ns.x] %}",
        "{% set ns.x = {'a': ns.x} %}",
        "{%- set ns.x=[[ns.x],] -%}",
        "{% set (ns.x, ns.y) = [ns.x], i %}",
        "{% set ns.y, (ns.x, z) = i, ([ns.x], 2) %}",
        "{% if true %}{% set z %}{% filter upper %}{% set ns.x = [ns.x] %}{% endfilter %}{% endset %}{% endif %}",
        "{% with a = 1 %}{% set ns.x = [ns.x] %}{% endwith %}",
        "{% for j in [] %}{% else %}{% set ns.x = [ns.x] %}{% endfor %}",
        "{% set wudao_plain = 1 %}{% set ns.x = [ns.x] %}",
        // Where a scanner of tags might lose its way.
        "{{ [{1: {1: 1}}, '{#'] }}{% set ns.x = [ns.x] %}{{ '#}' }}",
        "{% raw %}{% \" {% endraw %}{% set ns.x = [ns.x] %}{# \" #}",
        "{% set ns.x = [ns.x] if '=' == '=' else '%}' %}",
    ] {
        let error = grow(step, 90_000).unwrap_err().to_string();
        assert!(error.contains("depth 128"), "{step}: {error}");
        assert!(grow(step, 20).is_ok(), "{step}");
    }
    for step in ["{% set ns.x = ns.x|reverse %}", "{% set ns.x = ns.x + [1] %}", "{% set ns.x = ns.x|unique %}"] {
        if let Err(error) = grow(step, 90_000) {
            assert!(error.to_string().contains("are gone through") || error.to_string().contains("fuel"), "{error}");
        }
    }
    // A namespace in a namespace is what it was then.
    assert_eq!(grow("{% set ns.x = ns %}", 2).unwrap(), "{'x': {'x': [], 'y': 1}, 'y': 1}");
    assert_eq!(grow("{% set ns.x = [ns.y, i] %}", 3).unwrap(), "[1, 2]");
    let error = render("{% set ns = namespace() %}{% set ns.f = range %}").unwrap_err();
    assert!(error.to_string().contains("no functions"), "{error}");
    let error = render("{% set ns = namespace() %}{% set ns.f | upper %}{% endset %}").unwrap_err();
    assert!(error.to_string().contains("no filter"), "{error}");

    // As deep as a source can make it, and macros as many times.
    let recursive = |wrap: &str, n: usize| {
        let step = format!("{wrap}{{% if n %}}{{{{ f(x, n - 1) }}}}{{% else %}}{{{{ x }}}}{{% endif %}}");
        render(&format!("{{% macro f(x, n) %}}{step}{{% endmacro %}}{{{{ f(7, {n}) }}}}"))
    };
    let sets = "{% set x=[x] %}".repeat(4_200);
    assert_eq!(recursive(&sets, 4).unwrap().len(), 2 * 5 * 4_200 + 1);
    assert!(recursive(&sets, 400).is_err());
    let filters = format!("{{% set x = [x]{} %}}", "|batch(1)".repeat(1_500));
    assert_eq!(recursive(&filters, 0).unwrap().len(), 2 * 1_501 + 1);
    let _ = recursive(&filters, 4);
    assert!(recursive(&format!("{{{{ 1{} }}}}", " + 1".repeat(15_000)), 0).is_ok());
}

/// A few bytes of source can stand for more elements than there are atoms: whatever would go through them is refused.
#[test]
fn a_stranger_s_template_cannot_multiply() {
    let double = |double: &str, uses: &str| {
        let start = "{% set ns = namespace(x=[1], y=[1]) %}{% set x = [1] %}{% set y = [1] %}";
        render(&format!("{start}{}{uses}", double.repeat(45)))
    };
    for uses in [
        "{{ x }}",
        "{{ x | string | length }}",
        "{{ x ~ '' }}",
        "{{ 'a' ~ x }}",
        "{{ x == y }}",
        "{{ 1 < 2 == (x < y) }}",
        "{{ [x, y] | sort }}",
        "{{ [x, y] | unique | list | length }}",
        "{{ [[x], y] | max }}",
        "{{ x | tojson }}",
        "{{ x is eq(y) }}",
        "{{ x is eq y }}",
        "{{ x in [y] }}",
        "{{ {x: 1} }}",
        "{{ {(y): 1}[x] }}",
        "{{ '%s' | format(x) }}",
        "{{ '{}'.format(x) }}",
        "{{ ','.join([x]) }}",
        "{{ [x, x] | join }}",
        "{{ (x if true else y) | string | length }}",
        "{{ (false or x) ~ '' }}",
        "{% if x == y %}{% endif %}",
        "{% for a in [1] if x == y %}{% endfor %}",
        "{% filter replace('a', x) %}{% endfilter %}",
        "{% set z %}{{ x }}{% endset %}",
        "{% set z | replace('a', x) %}a{% endset %}",
        "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(x) }}",
        "{% macro m(a=x) %}{{ a }}{% endmacro %}{{ m() }}",
        "{% macro m() %}{{ caller(x) }}{% endmacro %}{% call(a) m() %}{{ a }}{% endcall %}",
        "{% with a = x %}{{ a }}{% endwith %}",
        "{% for a in [x] %}{{ a }}{% endfor %}",
        "{% for a in [[x]] recursive %}{% if a is sequence %}{{ loop([a]) }}{% endif %}{% endfor %}",
        "{% set ns.x = x %}",
        "{% do ns.x.append(x) %}",
        "{{ raise_exception(x) }}",
    ] {
        assert!(double("{% set x = [x, x] %}{% set y = [y, y] %}", uses).is_err(), "{uses}");
    }
    for step in [
        "{% set x, y = [x, x], (y, y) %}",
        "{% set x = {'a': x, 'b': x} %}{% set y = {'a': y, 'b': y} %}",
        "{% set x = x if false else [x, x] %}{% set y = [y, y] %}",
    ] {
        assert!(double(step, "{{ x }}").is_err() && double(step, "{{ x == y }}").is_err(), "{step}");
        // What is not gone through costs nothing.
        assert_eq!(
            double(step, "{{ x is defined }}{{ x is sequence }}{{ x | length }}").unwrap(),
            "TrueTrue2",
            "{step}"
        );
    }
    for step in ["{% set x = [1]|batch(2, x)|list + [x] %}", "{% set x = dict(a=x, b=x) %}"] {
        assert!(double(step, "{{ x }}").is_err(), "{step}");
    }
    for step in ["{% set x = x + x %}", "{% set x = (x * 2) | list %}", "{% set x = x | list + x %}"] {
        assert!(double(step, "{{ x | list | length }}").is_err(), "{step}");
    }
    let times = [
        "[1] * 5000000",
        "5000000 * [1]",
        "(1, 2) * 3000000",
        "[[1] * 3000] * 3000",
        "'ab' * 50000000 * 7",
        "'悟' * 33333333 + 90000000 * 'x' + 'y' * 90000000",
        "[1] * 10**40",
    ];
    for times in times {
        for template in [format!("{{{{ {times} }}}}"), format!("{{% set x = {times} %}}")] {
            assert!(render(&template).is_err(), "{template}");
        }
    }
    for options in ["indent='  '*40", "separators=(',', ':'*65)"] {
        let error = render(&format!("{{{{ [1]|tojson({options}) }}}}")).unwrap_err();
        assert!(error.to_string().contains("64 bytes at most"), "{error}");
    }
    for chain in ["|tojson", "|replace('a', 'aa')", "|replace('\"', '\"\"')"] {
        assert!(render(&format!("{{{{ 'a\"'{} | length }}}}", chain.repeat(45))).is_err(), "{chain}");
    }
}

/// The filters that meter change nothing else.
#[test]
fn metered_templates_mean_what_they_meant() {
    for (template, text) in [
        ("{{ 'a b'.split(' ')[-1].upper() }}{{ (1, 2) }}{{ -3 | abs }}{{ 2 ** 3 | int }}", "B(1, 2)38"),
        ("{% set x = {'a': [1, 2]} %}{{ x.a[-1] }}{{ x['a'] | first }}{{ x.items() | list }}", "21[('a', [1, 2])]"),
        ("{% set x = 1, 2 %}{{ x[0] }}{% for k, v in {'k': 'v'}.items() %}{{ k ~ v }}{% endfor %}", "1kv"),
        ("{% if not x and y is not defined or 1 in [2] %}yes{% endif %}{{ nothing }}{{ z is defined }}", "yesFalse"),
        ("{{ 'a' if 1 == 1.0 else 'b' }}{{ ('x' ~ 1 ~ 'y')|upper|lower }}{{ [1, 2, 3][1:] }}", "ax1y[2, 3]"),
        ("{% macro m(a, b=2) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}{{ m(*[3], **{'b': 4}) }}", "1234"),
        ("{% for x in [1, [2]] recursive %}{{ loop(x) if x is sequence else x }}{% endfor %}", "12"),
        ("{% for x in 'ab' %}{{ loop.cycle('x', 'y') }}{{ loop.previtem is defined }}{% endfor %}", "xFalseyTrue"),
        ("{% set ns = namespace(a=1) %}{% for i in [1, 2] %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}", "4"),
        ("{{ range(3) | map('string') | join(',') }}{{ 'x' in 'xyz' and 3 not in [1] }}", "0,1,2True"),
        (
            "{{ [1, 2, 3][::-(2)] }}{{ 'abc'[::(1)-(2)] }}{{ (1, 2, 3)[0:3:(1 + 1)] }}{{ 'ab'[::none] }}",
            "[3, 1]cba(1, 3)ab",
        ),
        ("{{ [1] * 2 + [3] * (1 + 1) }}{{ 2 * 3 * 4 - 2 }}{{ 'ab' * 2 }}{{ -2 * 2 | abs }}", "[1, 1, 3, 3]22abab-4"),
        (
            "{% for x in 2 * [1] %}{{ x }}{% endfor %}{{ [1, 2, 3][::-(1) * 2] }}{{ -2.5 * 10**3 * 2 }}",
            "11[3, 1]-5000.0",
        ),
        ("{{ (1 if true else 2) * 'a' }}{{ [1] * -1 }}{{ [2 * [3 * 'x']] }}", "a[][['xxx', 'xxx']]"),
        (
            "{% set x = {'a': [2]} %}{{ x.a[0] * x['a'][0:1][0] * 'a b'.split()|length * (3 if x is mapping else 1) }}{{ [1, 2][::2 if x else 1] }}",
            "24[1]",
        ),
        ("{{ 'abc'[::-9223372036854775807 - 1] }}{{ [1, 2][:: -9223372036854775807-1][0] }}", "c2"),
        ("{{ messages | map(attribute='content') | list }}{{ messages[0]['content'][:2] }}", "['text']te"),
    ] {
        let template = ChatTemplate::parse(template, BTreeMap::new()).unwrap();
        assert_eq!(template.render(&chat("text")).unwrap(), text, "{}", template.source());
    }
}

#[test]
fn a_template_may_refuse() {
    let error = render("{{ raise_exception('roles must alternate') }}").unwrap_err();
    assert!(matches!(&error, ChatError::Refused(why) if why == "roles must alternate"), "{error}");
}

#[test]
fn a_folder_has_templates_in_a_file_or_in_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let open = || ChatTemplate::open(dir.path());
    assert!(open().unwrap().is_none());
    write("tokenizer_config.json", r#"{"bos_token": {"content": "<s>"}, "eos_token": "</s>"}"#);
    assert!(open().unwrap().is_none());

    let tools = Chat { tools: vec![Value::from("f")], ..chat("hi") };
    write(
        "tokenizer_config.json",
        r#"{"bos_token": {"content": "<s>"}, "chat_template": [
            {"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"},
            {"name": "tool_use", "template": "tools"}]}"#,
    );
    let template = open().unwrap().unwrap();
    assert_eq!(
        (template.render(&chat("hi")).unwrap(), template.render(&tools).unwrap()),
        ("<s>hi".into(), "tools".into())
    );

    write(CHAT_TEMPLATE, "{{ bos_token }} of a file\n");
    let template = open().unwrap().unwrap();
    assert_eq!(template.render(&tools).unwrap(), "<s> of a file");
    std::fs::create_dir(dir.path().join(ADDITIONAL)).unwrap();
    write("additional_chat_templates/tool_use.jinja", "more");
    assert_eq!(open().unwrap().unwrap().render(&tools).unwrap(), "more");

    write("tokenizer_config.json", r#"{"chat_template": 5}"#);
    assert!(open().unwrap_err().to_string().contains("must be text"));
    write("tokenizer_config.json", "{");
    assert!(matches!(open(), Err(ChatError::Malformed { .. })));
    write(CHAT_TEMPLATE, &"x".repeat(MAX_TEMPLATE as usize + 1));
    write("tokenizer_config.json", "{}");
    assert!(matches!(open(), Err(ChatError::TooLarge { .. })));
}
