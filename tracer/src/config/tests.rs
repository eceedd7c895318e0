use proptest::prelude::*;

use super::*;
use crate::cli::{Cli, Command};

fn file(text: &str) -> File {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    File::load(Some(&file.path().to_owned())).unwrap()
}

fn command(args: &[&str]) -> Command {
    let args = ["tracer"].iter().chain(args);
    Cli::read(args).unwrap().command
}

fn agent(args: &[&str], text: &str) -> Result<Config, String> {
    let Command::Agent(args) = command(&[&["agent"], args].concat()) else {
        panic!("not agent");
    };
    Config::agent(&args, &file(text)).map_err(|e| e.to_string())
}

#[test]
fn defaults_are_the_contract() {
    let config = agent(&[], "").unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1:9773");
    assert_eq!(config.api, Api::Unix("/run/tracer.sock".into()));
    assert_eq!(config.pods, Pods::Auto);
    assert_eq!(config.dns_ports, [53]);
    assert_eq!(config.dns_timeout, Duration::from_secs(5));
    assert_eq!(config.window, Duration::from_mins(1));
    assert_eq!(config.state_dir, Some("/sys/fs/bpf/tracer".into()));
    assert_eq!(config.event_rate, 1_000);
    assert_eq!(config.max_pods, 1_000);
    assert!(!config.node.is_empty());
}

#[test]
fn a_flag_beats_the_file_and_the_file_beats_the_default() {
    let text = "dns-timeout = \"2s\"\nwindow = \"30s\"\ndns-port = [5353, 53]\napi = \"none\"\n\
                state-dir = \"/a\"\nnode = \"filed\"\nmax-pods = 5\nevent-rate = 0\n\
                pods = \"local\"\nredact-names = true\nlisten = \"127.0.0.1:1\"\n";
    let config = agent(&[], text).unwrap();
    assert_eq!(config.dns_timeout, Duration::from_secs(2));
    assert_eq!(config.dns_ports, [5353, 53]);
    assert_eq!((config.event_rate, config.max_pods), (0, 5));
    assert_eq!(config.node, "filed");
    assert!(config.redact_names && !agent(&[], "").unwrap().redact_names);
    assert!(agent(&["--redact-names"], "").unwrap().redact_names);

    let flags = [
        "--dns-timeout=1s",
        "--dns-port=54",
        "--drop-reasons=-no_socket",
        "--api=unix:/b",
        "--state-dir=none",
        "--node=flagged",
        "--max-pods=6",
        "--event-rate=7",
        "--pods=none",
        "--listen=[::]:2",
    ];
    let config = agent(&flags, text).unwrap();
    let expected = Config {
        listen: "[::]:2".parse().unwrap(),
        api: Api::Unix("/b".into()),
        node: "flagged".into(),
        pods: Pods::None,
        cri_endpoint: None,
        dns_ports: vec![54],
        dns_timeout: Duration::from_secs(1),
        silent_ports: vec![6443, 2379],
        silent_after: Duration::from_secs(10),
        drop_reasons: DropReasons(vec![("no_socket".to_owned(), false)]),
        redact_names: true,
        window: Duration::from_secs(30),
        state_dir: None,
        detach_all: false,
        event_rate: 7,
        max_pods: 6,
    };
    assert_eq!(config, expected);
}

#[test]
fn ports_are_one_to_eight_and_differ() {
    let two = ["--dns-port", "53", "--dns-port", "5353"];
    assert_eq!(agent(&two, "").unwrap().dns_ports, [53, 5353]);
    let listed = ["--dns-port", "53,5353"];
    assert_eq!(agent(&listed, "").unwrap().dns_ports, [53, 5353]);
    assert!(agent(&["--dns-port=1,2,3,4,5,6,7,8"], "").is_ok());
    let error = |port: &str| agent(&["--dns-port", port], "").unwrap_err();
    assert!(error("1,2,3,4,5,6,7,8,9").contains("9 ports given, at most 8"));
    assert_eq!(error("53,53"), "dns-port: 53 is given twice; leave one out");
    assert!(error("0").contains("0 is no port"));
}

#[test]
fn a_runtimes_socket_goes_with_the_sources_that_ask_it() {
    let file = "cri-endpoint = \"unix:///run/x.sock\"";
    for pods in ["auto", "cri"] {
        let config = agent(&["--pods", pods], file).unwrap();
        assert_eq!(config.cri_endpoint.unwrap().0, PathBuf::from("/run/x.sock"));
    }
    for pods in ["kubernetes", "local", "none", "file:/p"] {
        let error = agent(&["--pods", pods], file).unwrap_err();
        assert!(error.starts_with("cri-endpoint: "), "{error}");
    }
    assert_eq!(agent(&[], "").unwrap().cri_endpoint, None);
}

#[test]
fn a_number_of_pods_has_bounds() {
    for pods in ["0", "100001"] {
        let error = agent(&["--max-pods", pods], "").unwrap_err();
        assert!(error.contains("out of range"), "{error}");
    }
}

#[test]
fn the_node_is_named_by_the_first_that_knows() {
    let args = |name: Option<&str>| TraceArgs {
        node: name.map(|n| n.parse().unwrap()),
        ..TraceArgs::default()
    };
    let filed = file("node = \"filed\"");
    let none = File::default();
    let given = || Some("given".to_owned());
    assert_eq!(node(&args(Some("flag")), &filed, given()).unwrap(), "flag");
    assert_eq!(node(&args(None), &filed, given()).unwrap(), "filed");
    assert_eq!(node(&args(None), &none, given()).unwrap(), "given");
    let host = node(&args(None), &none, None).unwrap();
    assert_eq!(node(&args(None), &none, Some(String::new())).unwrap(), host);
    let error = node(&args(None), &none, Some("a\nb".into())).unwrap_err();
    assert!(!error.to_string().contains('\n'), "{error}");
    assert!(error.to_string().starts_with("NODE_NAME "), "{error}");
}

#[test]
fn top_shares_nothing_with_an_agent() {
    let text = "api = \"unix:/a\"\nstate-dir = \"/b\"\ninterval = \"5s\"\nsort = \"p99\"\n";
    let Command::Top(args) = command(&["top", "--once", "--sort", "POD", "--dns-port=54"]) else {
        panic!("not top");
    };
    let config = TopConfig::new(&args, &file(text)).unwrap();
    assert_eq!((config.once, config.sort), (true, Column::Pod));
    assert_eq!(config.interval, Duration::from_secs(5));
    assert_eq!(config.agent, None);
    assert_eq!(
        (config.trace.api, config.trace.state_dir),
        (Api::None, None)
    );
    assert_eq!(config.trace.dns_ports, [54]);
}

#[test]
fn a_switch_is_off_where_the_stronger_says_so() {
    let on = "once = true\nredact-names = true\n";
    let once = |args: &[&str], text| {
        let Command::Top(args) = command(&[&["top"], args].concat()) else {
            panic!("not top");
        };
        let config = TopConfig::new(&args, &file(text)).unwrap();
        (config.once, config.trace.redact_names)
    };
    assert_eq!(once(&[], ""), (false, false));
    assert_eq!(once(&[], on), (true, true));
    let off = ["--once=false", "--redact-names=no"];
    assert_eq!(once(&off, on), (false, false));
    assert_eq!(once(&["--once", "--redact-names"], ""), (true, true));
}

/// Variables are set for all commands; a flag is meant for this one.
#[test]
fn what_the_environment_says_gives_way() {
    let top = |flags: &[&str], environment: fn(&mut TopArgs), text: &str| {
        let Command::Top(mut args) = command(&[&["top"], flags].concat()) else {
            panic!("not top");
        };
        environment(&mut args);
        let config = TopConfig::new(&args, &file(text));
        config.map(|c| c.cluster).map_err(|e| e.to_string())
    };
    let url = "--prometheus=http://p:9090";
    let json: fn(&mut TopArgs) = |args| args.prometheus.output = Some(OutputFormat::Json);
    assert!(top(&[], json, "").unwrap().is_none());
    assert!(top(&["--output=json"], |_| {}, "").is_err());

    let agent: fn(&mut TopArgs) = |args| args.agent = Some(AgentAddr::default());
    assert!(top(&[url], agent, "").unwrap().is_some());
    assert!(top(&[url, "--agent=unix:/a"], |_| {}, "").is_err());
    let filed = "prometheus = \"http://p:9090\"";
    assert!(top(&[], |_| {}, filed).unwrap().is_some());
    assert!(top(&[], agent, filed).unwrap().is_none());
    let both: fn(&mut TopArgs) = |args| {
        args.agent = Some(AgentAddr::default());
        args.prometheus.prometheus = Some("http://p:9090".into());
    };
    assert!(top(&[], both, "").is_err());

    let node: fn(&mut TopArgs) = |args| args.trace.node = Some("here".parse().unwrap());
    assert_eq!(top(&[url], node, "").unwrap().unwrap().node, None);
    let there = top(&[url, "--node=there"], |_| {}, "").unwrap().unwrap();
    assert_eq!(there.node.as_deref(), Some("there"));

    let token: fn(&mut TopArgs) = |args| args.prometheus.bearer_token = Some("old".into());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, "new").unwrap();
    let by_file = format!("--bearer-token-file={}", path.display());
    let access = top(&[url, &by_file], token, "").unwrap().unwrap().access;
    assert_eq!(access.token_file, Some(path));
    assert!(access.headers.is_empty());
    assert!(top(&[url, &by_file, "--bearer-token=x"], |_| {}, "").is_err());
}

#[test]
fn a_missing_file_is_named() {
    let error = File::load(Some(&"/nowhere/tracer.toml".into())).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot read /nowhere/tracer.toml, the file of --config: No such file or directory \
         (os error 2)"
    );
}

#[test]
fn every_flag_is_a_key() {
    use clap::CommandFactory;
    let error = toml::from_str::<File>("unknown = 1").unwrap_err();
    let mut root = Cli::command();
    root.build();
    for command in root.get_subcommands() {
        for arg in command.get_arguments() {
            let Some(flag) = arg.get_long() else { continue };
            // The file cannot name itself.
            if !["help", "version", "config"].contains(&flag) {
                let key = format!("`{flag}`");
                assert!(error.message().contains(&key), "{flag}");
            }
        }
    }
}

proptest! {
    #[test]
    fn of_every_subset_of_flags_and_keys_the_flag_wins_then_the_key_then_the_default(
        flags in any::<[bool; 8]>(),
        keys in any::<[bool; 8]>(),
    ) {
        // What it is called, what the flag says, what the key says, the default; and how it shows.
        type Show = fn(&Config) -> String;
        let options: [([&str; 4], Show); 8] = [
            (["listen", "[::]:1", "[::]:2", "127.0.0.1:9773"], |c| c.listen.to_string()),
            (["node", "a", "b", ""], |c| c.node.clone()),
            (["dns-timeout", "1s", "2s", "5s"], |c| span(c.dns_timeout)),
            (["silent-after", "3s", "4s", "10s"], |c| span(c.silent_after)),
            (["window", "20s", "30s", "1m"], |c| span(c.window)),
            (["event-rate", "7", "8", "1000"], |c| c.event_rate.to_string()),
            (["max-pods", "5", "6", "1000"], |c| c.max_pods.to_string()),
            (["state-dir", "/a", "/b", "/sys/fs/bpf/tracer"], |c| {
                c.state_dir.as_ref().map_or("none".into(), |dir| dir.display().to_string())
            }),
        ];
        let given = |of: [bool; 8], which: usize, text: fn(&str, &str) -> String| -> Vec<String> {
            let options = options.iter().zip(of).filter(|(_, given)| *given);
            options.map(|((words, _), _)| text(words[0], words[which])).collect()
        };
        let flagged = given(flags, 1, |name, value| format!("--{name}={value}"));
        let flagged: Vec<&str> = flagged.iter().map(String::as_str).collect();
        let text = given(keys, 2, |name, value| match value.parse::<u64>() {
            Ok(number) => format!("{name} = {number}\n"),
            Err(_) => format!("{name} = {value:?}\n"),
        });
        let config = agent(&flagged, &text.concat()).unwrap();
        for (((words, show), flag), key) in options.iter().zip(flags).zip(keys) {
            let expected = match (flag, key) {
                (true, _) => words[1],
                (false, true) => words[2],
                (false, false) => words[3],
            };
            // The host's name is anything.
            if !expected.is_empty() {
                prop_assert_eq!(show(&config), expected, "{}", words[0]);
            }
        }
    }
}

fn span(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}
