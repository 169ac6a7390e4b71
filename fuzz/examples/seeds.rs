//! Makes `seeds/`: small good files of every kind, from which the fuzzer starts. `cargo run --example seeds`

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use wudao_data::cursor::Cursor;
use wudao_data::document::Lang;
use wudao_data::manifest::{Manifest, Source, Split, TokenizerStamp};
use wudao_data::shard::ShardWriter;
use wudao_data::tokenizer::{TOKENIZER_CONFIG_FILE, Tokenizer, TrainOptions};
use wudao_device::{Cpu, DType};
use wudao_model::gguf::{Field, TensorType, write};
use wudao_model::model::Options;
use wudao_model::weights::{self, Listed};
use wudao_model::{Config, Model};
use wudao_train::TrainSettings;
use wudao_train::checkpoint::{FORMAT_VERSION, State};
use wudao_train::metrics::RunFile;
use wudao_train::optimizer::Optimizer;
use wudao_train::schedule::Plan;
use wudao_train::settings::OptimizerKind;

const POEM: &str = "春眠不觉晓，处处闻啼鸟。\n夜来风雨声，花落知多少。\n";

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

fn seed(target: &str, name: &str, bytes: impl AsRef<[u8]>) -> Result {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    fs::create_dir_all(&folder)?;
    Ok(fs::write(folder.join(name), bytes)?)
}

fn main() -> Result {
    let scratch = tempfile::tempdir()?;
    let configs = configs()?;
    let config = &configs[0].1;
    let tokenizer = tokenizers()?;
    documents()?;
    shards(scratch.path(), &tokenizer)?;
    weights(scratch.path(), config)?;
    gguf(scratch.path(), &configs, &tokenizer)?;
    settings()?;
    server()?;
    tasks()?;
    run(config)
}

/// A byte that says what follows, then lines or a table.
fn tasks() -> Result {
    let request = |doc: u64, idx: u64| {
        let request = serde_json::json!({"context": "a", "continuation": " b"});
        serde_json::json!({"request": request, "doc_id": doc, "idx": idx, "label": 1})
    };
    seed("task", "requests", format!("0{}\n{}\n{}\n", request(0, 0), request(0, 1), request(1_000_000, 0)))?;
    let choices = serde_json::json!({"context": POEM, "choices": ["a", "b"], "label": 1});
    seed("task", "choices", format!("0{choices}\n\n{choices}"))?;
    seed("task", "texts", format!("0{}", serde_json::json!({"text": POEM})))?;
    let mut table = b"1".to_vec();
    table.extend(mmlu()?);
    seed("task", "mmlu", table)
}

fn mmlu() -> Result<Vec<u8>> {
    use arrow_array::builder::{ListBuilder, StringBuilder};
    use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
    let mut choices = ListBuilder::new(StringBuilder::new());
    (0..2).for_each(|_| choices.append_value(["a", "b", "c", POEM].map(Some)));
    let columns: [(&str, ArrayRef); 3] = [
        ("question", Arc::new(StringArray::from(vec![POEM, "1 + 1?"]))),
        ("choices", Arc::new(choices.finish())),
        ("answer", Arc::new(Int64Array::from(vec![3, 0]))),
    ];
    let batch = RecordBatch::try_from_iter(columns)?;
    let mut writer = arrow_ipc::writer::StreamWriter::try_new(vec![], &batch.schema())?;
    writer.write(&batch)?;
    Ok(writer.into_inner()?)
}

fn server() -> Result {
    let chats = Path::new(env!("CARGO_MANIFEST_DIR")).join("../reference/golden/chat");
    for name in ["chatml", "constrained", "qwen3", "sink"] {
        let golden: serde_json::Value = serde_json::from_slice(&fs::read(chats.join(name).with_extension("json"))?)?;
        let template = golden["template"].as_str().ok_or("no template")?;
        let messages = &golden["cases"][2]["given"]["messages"];
        seed("chat_template", name, format!("{template}\0{messages}"))?;
    }
    let call = serde_json::json!({"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}});
    let tool = serde_json::json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}});
    for (name, request) in [
        ("completion", serde_json::json!({"prompt": [[1, 2], [3]], "max_tokens": 1, "logprobs": 1, "echo": true, "stop": ["a"],
            "logit_bias": {"5": 1.5}, "seed": -1, "top_k": -1})),
        ("chat", serde_json::json!({"messages": [{"role": "user", "content": [{"type": "text", "text": POEM}]},
            {"role": "assistant", "content": null, "tool_calls": [call]}, {"role": "tool", "content": "2", "tool_call_id": "1"}],
            "tools": [tool], "tool_choice": {"type": "function", "function": {"name": "f"}}, "stream": true})),
        ("responses", serde_json::json!({"input": [{"role": "user", "content": "a"},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}], "instructions": POEM})),
        ("embedding", serde_json::json!({"input": ["a", "b"], "encoding_format": "base64"})),
        ("form", serde_json::json!({"messages": [{"role": "user", "content": "x"}], "structured_outputs": {"json": null},
            "response_format": {"type": "json_schema", "json_schema": {"name": "p", "strict": true, "schema": {
                "type": "object", "additionalProperties": false, "required": ["a"],
                "properties": {"a": {"$ref": "#/$defs/a~1b"}, "b": {"items": {"anyOf": [{"const": 1.0}, {"$ref": "#k"}]}}},
                "$defs": {"a/b": {"type": "string", "format": "date"}, "k": {"$anchor": "k", "enum": [{"x": [1]}]}}}}}})),
    ] {
        let mut request = request;
        request.sort_all_objects();
        seed("request", name, request.to_string())?;
    }
    seed("request", "answer", "<think>hm</think> yes <tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>")
}

fn documents() -> Result {
    let jsonl = format!("{{\"text\": {POEM:?}, \"id\": 1}}\n\"a string\"\n{{\"title\": \"\\u4f60\\ud83d\\ude00\"}}\n");
    let gb18030: &[u8] =
        b"\xb4\xba\xc3\xdf\xb2\xbb\xbe\xf5\xcf\xfe\xa3\xac\xb4\xa6\xb4\xa6\xce\xc5\xcc\xe4\xc4\xf1\xa1\xa3\n";
    let utf16: Vec<u8> = "\u{feff}春眠不觉晓，\n\ntext".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (name, format, choice, file) in [
        ("text", 0, 0, format!("A line.\n\n{POEM}").as_bytes()),
        ("gb18030", 0, 1, gb18030),
        ("utf16", 0, 2, &utf16),
        ("json", 1, 0, format!("[{{\"text\": {POEM:?}}}, \"a string\", {{\"text\": null}}]").as_bytes()),
        ("json-objects", 1, 128, b"{\"text\": \"one\"} {\"text\": \"two\", \"deep\": [[{}]]}"),
        ("jsonl", 2, 64, jsonl.as_bytes()),
        ("csv", 3, 64, b"id,title,text\n1,a,\"two\nlines, \"\"quoted\"\"\"\r\n2,,b\n"),
    ] {
        seed("documents", name, [&[format, choice], file].concat())?;
    }

    let mut gzip = flate2::write::GzEncoder::new(vec![0], flate2::Compression::fast());
    gzip.write_all(jsonl.as_bytes())?;
    seed("compressed", "gzip", gzip.finish()?)?;
    seed("compressed", "zstd", [&[1], &zstd::encode_all(jsonl.as_bytes(), 3)?[..]].concat())?;
    let mut xz = liblzma::write::XzEncoder::new(vec![2], 0);
    xz.write_all(jsonl.as_bytes())?;
    seed("compressed", "xz", xz.finish()?)?;

    use parquet::basic::Compression;
    for (name, codec) in [
        ("plain", Compression::UNCOMPRESSED),
        ("snappy", Compression::SNAPPY),
        ("zstd", Compression::ZSTD(Default::default())),
    ] {
        seed("parquet", name, parquet(codec)?)?;
    }
    Ok(())
}

fn parquet(codec: parquet::basic::Compression) -> Result<Vec<u8>> {
    use parquet::data_type::{ByteArrayType, Int64Type};
    use parquet::file::{properties::WriterProperties, writer::SerializedFileWriter};
    let schema = "message schema { required int64 id; optional binary text (UTF8); }";
    let schema = Arc::new(parquet::schema::parser::parse_message_type(schema)?);
    let properties = Arc::new(WriterProperties::builder().set_compression(codec).build());
    let mut bytes = vec![];
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, properties)?;
    for _ in 0..2 {
        let mut group = writer.next_row_group()?;
        let mut ids = group.next_column()?.ok_or("no column")?;
        ids.typed::<Int64Type>().write_batch(&[1, 2, 3], None, None)?;
        ids.close()?;
        let mut texts = group.next_column()?.ok_or("no column")?;
        texts.typed::<ByteArrayType>().write_batch(&[POEM.into(), "text".into()], Some(&[1, 0, 1]), None)?;
        texts.close()?;
        group.close()?;
    }
    writer.close()?;
    Ok(bytes)
}

fn tokenizers() -> Result<Tokenizer> {
    let tokenizer = Tokenizer::train([POEM, POEM, "the the text"], &TrainOptions::new(276))?;
    seed("tokenizer", "ours", tokenizer.json())?;
    let scratch = tempfile::tempdir()?;
    tokenizer.save(scratch.path())?;
    seed("tokenizer_config", "ours", fs::read(scratch.path().join(TOKENIZER_CONFIG_FILE))?)?;
    seed("tokenizer_config", "token", r#"{"eos_token": {"content": "<stop>", "special": true}}"#)?;
    let plain = r#""version":"1.0","truncation":null,"padding":null,"post_processor":null,"#;
    let added = r#""added_tokens":[{"id":0,"content":"</s>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],"#;
    for (name, rest) in [
        (
            "word-piece",
            r###""normalizer":{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,"strip_accents":null,"lowercase":true},"pre_tokenizer":{"type":"BertPreTokenizer"},"decoder":{"type":"WordPiece","prefix":"##","cleanup":true},"model":{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"##","max_input_chars_per_word":100,"vocab":{"</s>":0,"[UNK]":1,"hello":2,"##w":3,"世":4}}"###,
        ),
        (
            "unigram",
            r#""normalizer":{"type":"NFKC"},"pre_tokenizer":{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true},"decoder":{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true},"model":{"type":"Unigram","unk_id":1,"byte_fallback":false,"vocab":[["</s>",0.0],["<unk>",0.0],["▁H",-1.5],["e",-2.0],["l",-2.5]]}"#,
        ),
        (
            "byte-fallback",
            r#""normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},{"type":"Replace","pattern":{"String":" "},"content":"▁"}]},"pre_tokenizer":null,"decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]},"model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":true,"byte_fallback":true,"ignore_merges":false,"vocab":{"</s>":0,"<0xE4>":1,"H":2,"e":3,"He":4},"merges":["H e"]}"#,
        ),
        (
            "word-level",
            r#""normalizer":{"type":"Lowercase"},"pre_tokenizer":{"type":"Whitespace"},"decoder":null,"model":{"type":"WordLevel","vocab":{"</s>":0,"hello":1,"[UNK]":2},"unk_token":"[UNK]"}"#,
        ),
    ] {
        seed("tokenizer", name, format!("{{{plain}{added}{rest}}}"))?;
    }
    for (name, bytes) in [("text", POEM.as_bytes()), ("noise", b"it's 12345  \n\n\xff\xe4\xbd the")] {
        seed("encode", name, bytes)?;
    }
    Ok(tokenizer)
}

fn shards(folder: &Path, tokenizer: &Tokenizer) -> Result {
    let mut shards = vec![];
    for (split, vocab_size) in [(Split::Train, 276), (Split::Validation, 1 << 20)] {
        let stamp = TokenizerStamp { vocab_size, ..tokenizer.stamp()? };
        let mut writer = ShardWriter::new(folder, split, &stamp, 1 << 20, vec![])?;
        writer.push(&tokenizer.encode(POEM)?, POEM.len() as u64, Lang::Zh, 0)?;
        writer.push(&tokenizer.encode("the text")?, 8, Lang::En, 1)?;
        shards.extend(writer.finish()?);
    }
    for shard in &shards {
        seed("shard", &shard.file, fs::read(folder.join(&shard.file))?)?;
    }
    let source = |name: &str| Source {
        name: name.into(),
        files: vec![format!("{name}.txt")],
        weight: 1.0,
        languages: Default::default(),
    };
    let manifest = Manifest {
        format: 1,
        created_by: "wudao 0.1.0".into(),
        tokenizer: tokenizer.stamp()?,
        sources: vec![source("zh"), source("en")],
        rules: serde_json::json!({"min_chars": 20}),
        report: serde_json::json!({"documents": 2}),
        shards,
    };
    seed("manifest", "good", manifest.to_bytes())
}

/// By name, the smallest first.
fn configs() -> Result<Vec<(&'static str, Config)>> {
    let common = r#""hidden_size":8,"intermediate_size":12,"num_attention_heads":2,"num_key_value_heads":1,"head_dim":4,"vocab_size":16,"max_position_embeddings":8,"rms_norm_eps":1e-6,"hidden_act":"silu","#;
    let experts = r#""num_hidden_layers":2,"num_experts":4,"num_experts_per_tok":2,"moe_intermediate_size":6,"norm_topk_prob":true,"#;
    let mut configs = vec![];
    for (name, rest) in [
        ("tiny", r#""model_type":"llama","num_hidden_layers":1,"rope_theta":1e4,"tie_word_embeddings":true"#.into()),
        ("qwen3", r#""model_type":"qwen3","num_hidden_layers":1,"rope_parameters":{"rope_type":"default","rope_theta":1e6},"eos_token_id":[1,2]"#.into()),
        ("qwen3_moe", format!(r#"{experts}"model_type":"qwen3_moe","decoder_sparse_step":1,"mlp_only_layers":[0]"#)),
        ("mixtral", r#""model_type":"mixtral","num_hidden_layers":1,"num_local_experts":4,"num_experts_per_tok":2,"sliding_window":null"#.into()),
        ("glm4_moe", format!(r#"{experts}"model_type":"glm4_moe","n_routed_experts":4,"n_shared_experts":1,"n_group":2,"topk_group":1,"first_k_dense_replace":1,"routed_scaling_factor":1.5,"use_qk_norm":true,"partial_rotary_factor":0.5,"attention_bias":true"#)),
        ("deepseek_v3", format!(r#"{experts}"model_type":"deepseek_v3","num_key_value_heads":2,"n_routed_experts":4,"n_shared_experts":1,"n_group":2,"topk_group":1,"first_k_dense_replace":1,"q_lora_rank":6,"kv_lora_rank":4,"qk_nope_head_dim":4,"qk_rope_head_dim":2,"v_head_dim":3,"rope_scaling":{{"type":"yarn","factor":4.0,"original_max_position_embeddings":8,"mscale":1.0,"mscale_all_dim":1.0}}"#)),
    ] {
        let json = format!("{{{common}{rest}}}");
        let config = Config::from_json(json.as_bytes()).map_err(|error| format!("{name}: {error}"))?;
        seed("config", name, json)?;
        configs.push((name, config));
    }
    Ok(configs)
}

fn weights(folder: &Path, config: &Config) -> Result {
    let device = Cpu::new(1);
    for (name, dtype) in [("f32", DType::F32), ("bf16", DType::Bf16)] {
        let model = Model::new(&device, config, 8, Options { dtype, ..Options::default() })?;
        let store = model.init(&device, 1);
        for (prefix, name) in [("", name.to_owned()), ("m.", format!("{name}-moments"))] {
            let path = folder.join(&name);
            weights::write_tensors(&path, &Listed::of(&device, &store, prefix))?;
            seed("weights", &name, fs::read(path)?)?;
        }
    }
    for kind in [OptimizerKind::AdamW, OptimizerKind::Muon] {
        let model = Model::new(&device, config, 8, Options::default())?;
        let settings = TrainSettings { optimizer: kind, ..TrainSettings::default() };
        let path = folder.join(format!("optimizer-{kind:?}"));
        let optimizer = Optimizer::new(&device, model.layout(), DType::F32, &settings);
        weights::write_tensors(&path, &optimizer.listed(&device))?;
        seed("optimizer", &format!("{kind:?}").to_lowercase(), fs::read(path)?)?;
    }
    seed("index", "good", r#"{"metadata":{"total_size":8},"weight_map":{"x":"a","y":"b"}}"#)
}

fn gguf(folder: &Path, configs: &[(&str, Config)], tokenizer: &Tokenizer) -> Result {
    let device = Cpu::new(1);
    // GGUF has no qwen3_moe with a dense layer.
    for (name, config) in configs.iter().filter(|(name, _)| *name != "qwen3_moe") {
        let config = Config { vocab_size: tokenizer.vocab_size(), ..config.clone() };
        let model = Model::new(&device, &config, 8, Options::default())?;
        let dir = folder.join(format!("{name}-model"));
        fs::create_dir(&dir)?;
        wudao_model::weights::save(&device, &dir, &config, &model.init(&device, 1), DType::F32, 1 << 30)?;
        let (source, fields) = (weights::Source::open(&dir)?, wudao_infer::gguf::fields(tokenizer, &config, None)?);
        let write_seed = |name: &str, dtype: TensorType, fields: &[(String, Field)]| -> Result {
            let path = folder.join(format!("{name}.{dtype}.gguf"));
            write(&path, &source, dtype, fields)?;
            seed("gguf", &format!("{name}-{}", dtype.name().to_lowercase()), fs::read(path)?)
        };
        for dtype in [TensorType::F32, TensorType::BF16] {
            write_seed(name, dtype, &fields)?;
        }
        if *name == "tiny" {
            // Kinds of tokenizer that are read, but never written.
            for kind in ["gemma4", "bert"] {
                let as_kind = |(key, field): &(String, Field)| {
                    let field = if key == "tokenizer.ggml.model" { Field::Text(kind.into()) } else { field.clone() };
                    (key.clone(), field)
                };
                let unknown = ("tokenizer.ggml.unknown_token_id".into(), Field::Whole(0));
                let fields: Vec<_> = fields.iter().map(as_kind).chain([unknown]).collect();
                write_seed(kind, TensorType::F32, &fields)?;
            }
        }
    }
    Ok(())
}

fn settings() -> Result {
    let presets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../presets");
    seed("settings", "tiny", fs::read(presets.join("tiny.toml"))?)?;
    let sources = "preset = \"tiny\"\n\n[[sources]]\nname = \"books\"\npaths = [\"a\", \"b\"]\nweight = 2.5\n\n";
    seed(
        "settings",
        "sources",
        format!("{sources}[prepare]\nlanguages = [\"zh\"]\nread.fields = [\"title\", \"text\"]\n"),
    )
}

fn run(model: &Config) -> Result {
    let settings = TrainSettings { steps: Some(10), ..TrainSettings::default() };
    let plan = Plan::new(&settings, 0);
    let tokenizer = "0123456789abcdef".repeat(4);
    let state = State {
        format: FORMAT_VERSION,
        step: 3,
        updates: 3,
        tokens: 300,
        cursor: Cursor { seed: 1, documents: 2, epoch: 0, position: 1, offset: 4 },
        guard: Default::default(),
        best: None,
        plan: plan.clone(),
        data: Some("ab".repeat(32)),
        tokenizer: tokenizer.clone(),
        settings: settings.clone(),
    };
    let state = serde_json::to_vec(&state)?;
    seed("state", "good", &state)?;
    let scratch = tempfile::tempdir()?;
    let sum = wudao_model::weights::write_file(&scratch.path().join("state.json"), &state)?;
    let files = serde_json::json!([{"name": "state.json", "bytes": sum.bytes, "sha256": sum.sha256}]);
    seed("checksums", "good", serde_json::json!({"format": FORMAT_VERSION, "files": files}).to_string())?;

    let run = RunFile {
        created_by: "wudao 0.1.0".into(),
        settings,
        model: model.clone(),
        parameters: (12_345, 4_321),
        plan,
        tokenizer,
        sources: vec!["四大名著 <b>".into()],
        machine: vec![("threads".into(), "2".into())],
    };
    let lines = [
        r#"{"kind":"step","step":1,"tokens":512,"epoch":0.1,"loss":9.5,"balance_loss":0.0,"z_loss":0.0,"lr":1e-3,"grad_norm":3.5,"clipped":true,"skipped":false,"seconds":0.36,"elapsed":0.4,"tokens_per_second":22600.0,"flops_share":0.4,"router":[{"layer":1,"max_over_mean":1.5,"balance":0.9,"entropy":0.9,"dead":0,"load":[0.25,0.5,0.25]}]}"#,
        r#"{"kind":"step","step":2,"tokens":1024,"epoch":0.2,"loss":null,"balance_loss":0.0,"z_loss":0.0,"lr":1e-3,"grad_norm":null,"clipped":false,"skipped":true,"seconds":0.36,"elapsed":0.8,"tokens_per_second":22600.0,"flops_share":null,"router":[]}"#,
        r#"{"kind":"evaluation","step":2,"tokens":100,"bytes":420,"nll":3.8,"perplexity":44.7,"bits_per_byte":1.3,"languages":{"zh":{"tokens":100,"bytes":420,"nll":3.8,"perplexity":44.7,"bits_per_byte":1.3}},"sources":[{"source":"四大名著 <b>","language":"zh","tokens":100,"bytes":420,"nll":null,"perplexity":null,"bits_per_byte":null}],"best":true,"seconds":1.5}"#,
        r#"{"kind":"sample","step":2,"prompt":"你好","completion":"，世界\n"}"#,
    ];
    seed("report", "good", format!("{}\0{}\n", serde_json::to_string(&run)?, lines.join("\n")))
}
