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
            assert!(error.to_string().contains("namespace was given") || error.to_string().contains("fuel"), "{error}");
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
    let filters = format!("{{% set x = [x]{} %}}", "|batch(1)".repeat(7_000));
    assert_eq!(recursive(&filters, 0).unwrap().len(), 2 * 7_001 + 1);
    assert!(recursive(&filters, 4).is_ok());
    assert!(recursive(&format!("{{{{ 1{} }}}}", " + 1".repeat(15_000)), 0).is_ok());
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
