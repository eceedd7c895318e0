use super::*;

struct Fixed(Vec<Known>);

impl Source for Fixed {
    fn name(&self) -> &'static str {
        "fixed"
    }
    fn pods(&mut self, _addresses: bool) -> Result<Vec<Known>> {
        Ok(self.0.clone())
    }
}

fn known(name: &str, cookie: Option<u64>, netns: Option<u32>, cgroup: Option<&str>) -> Known {
    Known {
        net_cookie: cookie,
        netns,
        cgroup: cgroup.map(str::to_owned),
        ..Known::of(Owner::new("shop", name))
    }
}

fn resolver(pods: Vec<Known>) -> Resolver {
    resolver_with(vec![Box::new(Fixed(pods))])
}

fn resolver_with(sources: Vec<Box<dyn Source>>) -> Resolver {
    let mut resolver = Resolver::with(sources);
    resolver.cgroups =
        Cgroups::known(&[(7, "/kubepods/podA/c1"), (8, "/system.slice/sshd.service")]);
    resolver.set_host(1);
    resolver.refresh(Ask::Regularly);
    resolver
}

fn name(resolver: &Resolver, cgroup_id: Option<u64>, net_cookie: u64, netns: u32) -> String {
    resolver
        .resolve(
            &Identity {
                cgroup_id,
                net_cookie,
                netns,
                source: None,
                is_forwarded: false,
            },
            When::at(Instant::now()),
        )
        .map_or_else(|| "-".to_owned(), |owner| owner.to_string())
}

#[test]
fn the_cgroup_goes_before_the_namespace() {
    let r = resolver(vec![
        known("a", None, None, Some("/kubepods/podA")),
        known("b", Some(5), Some(50), None),
    ]);
    assert_eq!(name(&r, Some(7), 5, 50), "shop/a");
    assert_eq!(name(&r, Some(8), 5, 50), "shop/b");
    assert_eq!(name(&r, None, 5, 50), "shop/b");
    // A hostNetwork pod: the host's namespace, its own cgroup.
    assert_eq!(name(&r, Some(7), 1, 100), "shop/a");
}

#[test]
fn the_host_is_named_by_unit_or_kernel() {
    let r = resolver(Vec::new());
    assert_eq!(name(&r, Some(8), 1, 100), "(host)/sshd.service");
    assert_eq!(name(&r, None, 1, 100), "(host)/(kernel)");
    assert_eq!(name(&r, Some(99), 1, 100), "-");
    assert_eq!(name(&r, Some(8), 6, 60), "-");
}

#[test]
fn a_reused_inode_names_nobody_where_the_cookie_is_known() {
    let r = resolver(vec![known("a", Some(5), Some(50), None)]);
    assert_eq!(name(&r, None, 6, 50), "-");
    let r = resolver(vec![known("a", None, Some(50), None)]);
    assert_eq!(name(&r, None, 6, 50), "shop/a");
}

#[test]
fn an_inode_of_a_strong_source_beats_a_name_of_a_weak_one() {
    let r = resolver(vec![
        known("file", None, Some(50), None),
        known("local", Some(5), Some(50), None),
    ]);
    assert_eq!(name(&r, None, 5, 50), "shop/file");
}

#[test]
fn the_source_of_a_forwarded_packet_decides_alone() {
    let mut pod = known("a", Some(5), Some(50), None);
    pod.addresses = vec![[10, 0, 0, 2].into()];
    let r = resolver(vec![pod]);
    let of = |source: [u8; 4]| {
        r.resolve(
            &Identity {
                cgroup_id: None,
                net_cookie: 0,
                netns: 0,
                source: Some(source.into()),
                is_forwarded: false,
            },
            When::at(Instant::now()),
        )
    };
    assert_eq!(of([10, 0, 0, 2]), Some(Owner::new("shop", "a")));
    assert_eq!(of([10, 0, 0, 3]), None);
}

#[test]
fn the_rest_key_is_other() {
    assert_eq!(name(&resolver(Vec::new()), None, 0, 0), "(other)/(other)");
}

/// Names pods, and knows one by its uid only.
struct Runtime {
    idle: bool,
}

impl Source for Runtime {
    fn name(&self) -> &'static str {
        "runtime"
    }
    fn pods(&mut self, _addresses: bool) -> Result<Vec<Known>> {
        Ok(vec![Known {
            cgroup_uids: vec!["A".to_owned()],
            ..Known::of(Owner::new("shop", "by-uid"))
        }])
    }
    fn names_pods(&self) -> bool {
        true
    }
    fn is_idle(&self) -> bool {
        self.idle
    }
}

#[test]
fn what_looks_like_a_pod_waits_for_the_source_that_names_pods() {
    let provisional = || Known {
        provisional: true,
        ..known("cni-1", Some(5), Some(50), None)
    };
    for idle in [false, true] {
        let sources: Vec<Box<dyn Source>> = vec![
            Box::new(Runtime { idle }),
            Box::new(Fixed(vec![provisional()])),
        ];
        let mut r = resolver_with(sources);
        r.cgroups = Cgroups::known(&[
            (7, "/kubepods/podA/c1"),
            (8, "/system.slice/sshd.service"),
            (9, "/kubepods/pod1f8c3f6e-5a3b-4d4e-9c43-0a1b2c3d4e5f/c1"),
            (10, "/podruntime/kubelet"),
        ]);
        let (namespace, host) = if idle {
            ("shop/cni-1", "(host)/c1")
        } else {
            ("-", "-")
        };
        r.join.update(
            [
                &known("pod", Some(6), None, None),
                &Known {
                    net_cookie: Some(7),
                    ..Known::of(Owner::new("(netns)", "node"))
                },
            ]
            .into_iter(),
            Instant::now(),
            None,
        );
        // In the namespace of a pod, or one with a name: a cgroup that is not known yet, a stranger's.
        for cgroup in [99, 9] {
            assert_eq!(name(&r, Some(cgroup), 6, 60), "shop/pod");
            let node = if idle { "(netns)/node" } else { "-" };
            assert_eq!(name(&r, Some(cgroup), 7, 70), node);
        }
        assert_eq!(name(&r, None, 7, 70), "(netns)/node");
        assert_eq!(name(&r, None, 5, 50), namespace);
        assert_eq!(name(&r, Some(9), 1, 100), host);
        assert_eq!(name(&r, Some(7), 1, 100), "shop/by-uid");
        assert_eq!(name(&r, Some(8), 1, 100), "(host)/sshd.service");
        assert_eq!(name(&r, Some(10), 1, 100), "(host)/kubelet");
    }
}

#[test]
fn pods_of_one_name_share_their_series() {
    let of = |uid: &str| Owner {
        namespace: "shop".to_owned(),
        pod: "db-0".to_owned(),
        uid: Some(uid.to_owned()),
    };
    assert_eq!(of("a"), of("b"));
}
