//! One turn of the loop: reconcile what is dirty, let the path engine act, report.

use super::{
    Agent, DEVICE_RETRY, RELIST,
    intent::{self, Found, Intent, Ports},
    plane::{Plane, Planned},
    tls_port::TlsPort,
};
use crate::{
    memory,
    net::Changed,
    status::{
        conditions::{Admission, Cni, DeviceProblem, Facts, Network},
        content::{self, Content},
    },
};
use path::CandidateKind;
use std::{
    ops::ControlFlow,
    time::{Duration, Instant, SystemTime},
};
use topology::node::{PlanChange, UnderlayKind};
use wgdev::DeviceError;

/// Nothing at all is due: look anyway after this long.
const IDLE: Duration = Duration::from_secs(60);
/// How long a node that peers know waits for its candidates before it writes: STUN settles within this, and the published
/// candidates serve until then.
const CANDIDATES_WAIT: Duration = Duration::from_millis(600);
/// The same for a node that nobody knows yet: one round trip to a STUN server. Key and candidates in one write reach the
/// peers in one slice; the operator gathers what comes after.
const FIRST_CANDIDATES_WAIT: Duration = Duration::from_millis(150);

impl Agent {
    /// Brings everything in line after whatever happened. Breaks when the key file is gone.
    pub(super) async fn settle(&mut self) -> ControlFlow<()> {
        let now = Instant::now();
        if self.housekeeping_at <= now {
            self.housekeeping_at = now + self.settings.housekeeping;
            if self.identity.is_gone() {
                return ControlFlow::Break(());
            }
            self.network.look(self.host.clone().as_ref(), now);
            // Nobody announces a listener.
            self.dirty |= self.tls_port != self.find_tls_port();
            // A fight that is over is no event.
            let contended = i64::from(self.network.contended(now).is_some());
            if self.metrics.rules_contended.get() != contended {
                self.metrics.rules_contended.set(contended);
                self.report_at = Some(now);
            }
        }
        if self.tidy_at.take_if(|at| *at <= now).is_some() {
            memory::give_back();
        }
        let due = self.network.poll_timeout().is_some_and(|at| at <= now);
        let retry = self.device_retry.is_some_and(|(at, _)| at <= now);
        if self.dirty || due || retry {
            self.dirty = false;
            let timer = self.metrics.reconcile_duration.start_timer();
            if let Some((intent, change)) = self.reconcile(now).await {
                // Probes and STUN requests are on their way while routes are made.
                self.engine_turn(now).await;
                self.program_network(&intent, &change, now).await;
            } else {
                // A timer that nothing can be done about would be due for ever.
                self.network.suspend();
                self.device_retry = self.device_retry.filter(|(at, _)| *at > now);
            }
            timer.observe_duration();
        }
        self.engine_turn(now).await;
        self.report(now);
        ControlFlow::Continue(())
    }

    /// When the loop must wake up by itself.
    pub(super) fn poll_timeout(&self) -> Instant {
        let candidates = [
            self.dirty.then(Instant::now),
            Some(self.housekeeping_at),
            self.report_at,
            self.tidy_at,
            self.network.poll_timeout(),
            self.device_retry.map(|(at, _)| at),
            self.paths.poll_timeout(),
            self.plane.as_ref().and_then(Plane::poll_timeout),
            self.view.table().poll_list().map(|at| (self.epoch + at).max(self.relist_at.unwrap_or(self.epoch))),
        ];
        candidates.into_iter().flatten().min().unwrap_or_else(|| Instant::now() + IDLE)
    }

    pub(super) async fn survey(&mut self) {
        let host = self.host.clone();
        match host.survey(&self.settings.device).await {
            Ok(survey) => {
                let moved = self.network.survey.underlay.candidates != survey.underlay.candidates
                    || self.network.survey.underlay.gateways != survey.underlay.gateways;
                let first = self.network.survey == Default::default();
                if self.network.survey != survey {
                    self.network.survey = survey;
                    self.dirty = true;
                }
                if moved && !first {
                    self.moved();
                }
            }
            Err(e) => tracing::warn!(error = format!("{e:#}"), "the node's own network can't be read"),
        }
    }

    pub(super) async fn network_changed(&mut self, changed: Changed, now: Instant) {
        if changed.links || changed.routes || changed.lost {
            self.survey().await;
        }
        self.network.repair(now);
    }

    /// The node stands in another network: old connections lead nowhere, and what was measured is void. The round grows when
    /// the candidates turn out to be others, so that peers learn both at once.
    fn moved(&mut self) {
        tracing::info!("the node's addresses or gateways changed");
        self.connection.reset();
        if let Some(plane) = &mut self.plane {
            plane.network_changed(Instant::now());
        }
    }

    /// Brings device and path engine in line with what was told; the intent and the change of the plan, if there is something
    /// to go on with.
    async fn reconcile(&mut self, now: Instant) -> Option<(Intent, PlanChange)> {
        let found = Found {
            survey: &self.network.survey,
            api_servers: &self.api_servers,
            public_key: self.identity.public_key(),
        };
        let (own, mesh) = intent::basis(&self.settings, &self.view, &found)?;
        let changed = self.view.take_changed();
        let change = self.planner.update(&own, &mesh, self.view.table(), changed.as_ref());
        let intent = intent::intent(&self.settings, &self.view, &found, self.planner.plan())?;
        self.ensure_device(&intent, now).await;
        let admitted = self.is_admitted();
        let plane = self.plane.as_mut()?;
        plane.set_admitted(admitted);
        let planned = Planned { planner: &self.planner, change: &change };
        let one_step = plane.revision().is_some_and(|known| planned.follows(known));
        match plane.apply(&intent, planned, now).await {
            Ok(()) => {}
            Err(DeviceError::Refused(refused)) => {
                let error = DeviceError::Refused(refused);
                tracing::warn!(%error, "some peers are not configured");
            }
            Err(e) => {
                self.device_lost(&e.to_string(), now);
                return None;
            }
        }
        self.device_error = None;
        if one_step {
            for (key, (_, after)) in &change.peers {
                self.paths.set_peer(key, after.as_ref().map(|peer| &*peer.name), now);
            }
        } else {
            self.paths.set_peers(self.planner.plan().peers.iter().map(|(key, peer)| (key, &*peer.name)), now);
        }
        Some((intent, change))
    }

    async fn ensure_device(&mut self, intent: &Intent, now: Instant) {
        if self.plane.as_ref().is_some_and(|p| p.serves(&intent.device)) {
            return;
        }
        if self.device_retry.is_some_and(|(at, _)| at > now) {
            return;
        }
        // The old one lets go of its port and interface first.
        self.plane = None;
        self.publish_from = None;
        // It may come back as another interface, without what was programmed on it.
        self.network.suspend();
        let assigned = intent.device.listen_port;
        let reassigned = self.assigned_port.is_some_and(|before| before != assigned);
        match Plane::open(&self.host, &self.settings.device, &self.identity, intent, reassigned, now).await {
            Ok(plane) => {
                self.assigned_port = Some(assigned);
                tracing::info!(
                    device = self.settings.device,
                    port = plane.listen_port(),
                    backend = plane.backend().as_str(),
                    "the mesh device is open"
                );
                self.plane = Some(plane);
                self.device_error = None;
                self.device_retry = None;
            }
            Err(e) => {
                let problem = DeviceProblem::from(&e);
                if self.device_error.as_ref() != Some(&problem) {
                    tracing::error!(error = problem.message, "the mesh device can't be opened; trying again");
                }
                self.device_error = Some(problem);
                let pause = self.device_retry.map_or(DEVICE_RETRY.0, |(_, last)| (last * 2).min(DEVICE_RETRY.1));
                self.device_retry = Some((now + pause, pause));
            }
        }
    }

    async fn program_network(&mut self, intent: &Intent, change: &PlanChange, now: Instant) {
        let Some(plane) = &self.plane else { return self.network.suspend() };
        // Peers that only the device remembers have the routes of the agent before this one, which stay as those peers do.
        if plane.keeps_leftovers() && !self.view.was_listed() && self.network.programmed().is_none() {
            return self.network.suspend();
        }
        let port = plane.listen_port();
        let found = Found {
            survey: &self.network.survey,
            api_servers: &self.api_servers,
            public_key: self.identity.public_key(),
        };
        let served = |a: &&std::net::SocketAddr| self.host.listens_on(a.port());
        let serves_api = self.api_servers.iter().find(served).map(std::net::SocketAddr::port);
        let peers = self.planner.plan();
        self.tls_port = self.find_tls_port();
        let ports = Ports { listen_port: port, serves_api, relay_redirect: self.tls_port.redirect() };
        let plan = intent::net_plan(&self.settings, &self.view, &found, intent, peers, &ports);
        let Some(plan) = plan else { return self.network.suspend() };
        let host = self.host.clone();
        let planned = Planned { planner: &self.planner, change };
        if let Some(repairs) = self.network.program(host.as_ref(), plan, intent.cni.clone(), planned, now).await {
            for kind in repairs {
                self.metrics.route_repairs.with_label_values(&[kind]).inc();
            }
            self.report_at = Some(now);
        }
    }

    fn find_tls_port(&self) -> TlsPort {
        TlsPort::new(self.settings.relay_tls_port, self.view.own_relay_tls_port(), |port| self.host.listens_on(port))
    }

    async fn engine_turn(&mut self, now: Instant) {
        if self.view.table().poll_list().is_some_and(|at| self.epoch + at <= now)
            && self.relist_at.is_none_or(|at| at <= now)
        {
            // Asked once; the next question may be asked when this one has had time to be answered.
            self.relist_at = Some(now + RELIST);
            self.relist_slices.notify_one();
        }
        let Some(plane) = &mut self.plane else { return };
        let before = plane.local().map(|(candidates, _)| candidates.clone());
        match plane.turn(&mut self.paths, now).await {
            Ok(news) => {
                if news.local && before.is_some() && before != plane.local().map(|(c, _)| c.clone()) {
                    self.identity.next_round();
                }
                if news != Default::default() {
                    self.report_at = Some(now);
                }
                if news.meddled {
                    self.metrics.route_repairs.with_label_values(&["peer"]).inc();
                    self.dirty = true;
                }
            }
            Err(e) => self.device_lost(&e.to_string(), now),
        }
    }

    fn report(&mut self, now: Instant) {
        let due = self.report_at.is_some_and(|at| at <= now) || self.paths.poll_timeout().is_some_and(|at| at <= now);
        if !due {
            return;
        }
        self.report_at = None;
        let facts = self.facts(now);
        if !self.view.node_is_present() {
            return;
        }
        if let Some(wait) = self.waits_for_candidates(now) {
            self.report_at = Some(wait);
            return;
        }
        let content = self.content();
        let Some(node) = self.view.node() else { return };
        self.report_at = self.reporter.poll(&content, &facts, node, now);
    }

    /// Key and candidates belong in one write, if that costs no more than a moment.
    fn waits_for_candidates(&mut self, now: Instant) -> Option<Instant> {
        if self.plane.as_ref().is_some_and(|p| p.local().is_some()) {
            return None;
        }
        let admitted = self.is_admitted();
        if !admitted && self.publish_from.is_none() && self.connection.waits_until(now).is_none() {
            self.connection.prepare();
        }
        let wait = if admitted { CANDIDATES_WAIT } else { FIRST_CANDIDATES_WAIT };
        let until = *self.publish_from.get_or_insert(now) + wait;
        (now < until).then_some(until)
    }

    fn content(&mut self) -> Content {
        let key_proof = self.identity.proof(self.view.mesh(), self.view.node());
        // A device that is being opened, or has not heard from outside yet, is no news of the node's addresses: what this key
        // published last stands until there is something better.
        let own = self.identity.public_key().to_string();
        let published = self.view.node().and_then(|n| n.status.as_ref());
        let published = published.filter(|status| status.public_key.as_ref() == Some(&own));
        let local = self.plane.as_ref().and_then(Plane::local);
        let (candidates, nat) = match local {
            Some((candidates, nat)) => {
                let poisonable = self.plane.as_ref().and_then(|plane| plane.engine().poisonable());
                let nat = content::nat(nat, poisonable, published.map(|status| &status.nat));
                (content::candidates(candidates), nat)
            }
            None => published.map(|status| (status.candidates.clone(), status.nat.clone())).unwrap_or_default(),
        };
        let published_relays = published.map(|status| &status.relays[..]).unwrap_or_default();
        let relays = match &self.plane {
            Some(plane) => content::relays(plane.relays().rows(), published_relays),
            None => published_relays.to_vec(),
        };
        let open_port = self.plane.as_ref().map(Plane::listen_port);
        Content {
            public_key: self.identity.public_key(),
            key_proof,
            identity_key: self.identity.identity_key(),
            listen_port: open_port.or(published.and_then(|status| status.listen_port)),
            round: self.identity.round(),
            candidates,
            nat,
            backend: self.plane.as_ref().map(|plane| content::backend(plane.backend())),
            relay_tls_port: self.tls_port.redirect().filter(|_| self.network.stands()).map(|redirect| redirect.from),
            relays,
            generation: self.view.node().and_then(|n| n.metadata.generation),
        }
    }

    /// Everything that the conditions are made of.
    pub(super) fn facts(&mut self, now: Instant) -> Facts {
        let paths = self.paths.summary(now);
        let local = self.plane.as_ref().and_then(Plane::local);
        let of_kind = |kinds: &[CandidateKind]| {
            local.map_or(0, |(all, _)| all.iter().filter(|c| kinds.contains(&c.kind)).count())
        };
        let programmed = self.network.programmed();
        let unprogrammable =
            self.network.error().map(|e| Network { unfit: true, failures: vec![e.into()], ..Network::default() });
        Facts {
            admission: self.admission(),
            device: match (&self.plane, &self.device_error) {
                (Some(_), _) => Some(Ok(self.mtu())),
                (None, Some(why)) => Some(Err(why.clone())),
                (None, None) => None,
            },
            underlay_mtu: self.network.survey.underlay.mtu,
            host_candidates: of_kind(&[CandidateKind::Host]),
            reflexive_candidates: of_kind(&[CandidateKind::ServerReflexive, CandidateKind::PortMapped]),
            stun_servers: self.view.stun_servers().len(),
            network: unprogrammable.or_else(|| programmed.map(|p| self.with_overlaps(p.network.clone()))),
            cni: match programmed {
                Some(programmed) => programmed.cni.clone(),
                None if self.settings.cni_mode == crate::args::CniMode::Managed => {
                    Cni::Waiting("waits for device and routes".into())
                }
                None => Cni::NotManaged,
            },
            paths,
            guard: self.view.table().guard(now.duration_since(self.epoch)).map(|g| g.message),
            contended: self.network.contended(now),
            tls_port_taken: self.tls_port.problem(),
            not_persisted: self.cache.failure().borrow().clone(),
            clock_behind: self.cache.clock_behind(SystemTime::now()),
        }
    }

    /// Planning has left out what the node's own network needs before the host network could refuse it.
    fn with_overlaps(&self, mut network: Network) -> Network {
        let planned = &self.planner.plan().underlay_overlaps;
        // The API server's own address is carried for others and reached by the underlay from here: as it should be.
        let told = planned.iter().filter(|o| o.kind != UnderlayKind::Api).map(|o| {
            let (whose, what) = (if o.peer.is_empty() { "the mesh" } else { &o.peer }, underlay_name(o.kind));
            format!("{} of {whose} is not routed into the mesh: this node has {} as {what}", o.prefix, o.with)
        });
        network.overlaps.extend(told);
        network
    }

    /// Whether the operator has admitted this node's key.
    pub(super) fn is_admitted(&self) -> bool {
        self.view.node().is_some_and(|node| self.identity.is_admitted(node))
    }

    fn admission(&self) -> Admission {
        let Some(node) = self.view.node() else { return Admission::default() };
        let spec = self.view.own_spec().unwrap_or_default();
        Admission {
            state: spec.admission.state,
            own_key: self.identity.is_admitted(node),
            listed: self.view.is_listed(&self.identity.public_key()),
            reason: node.spec.admission.reason.clone(),
            message: spec.admission.message,
            suspended: spec.suspended,
            has_addresses: !spec.mesh_ips.is_empty(),
        }
    }

    pub(super) fn mtu(&self) -> u16 {
        let wanted = self.view.mesh().and_then(|m| m.spec.mtu);
        wanted.unwrap_or_else(|| self.network.survey.underlay.device_mtu())
    }
}

fn underlay_name(kind: UnderlayKind) -> &'static str {
    match kind {
        UnderlayKind::OwnAddress => "an address of its own",
        UnderlayKind::Gateway => "its gateway",
        UnderlayKind::Resolver => "its resolver",
        UnderlayKind::Api => "the address of the Kubernetes API",
        UnderlayKind::ConnectedSubnet => "a subnet of its links",
    }
}
